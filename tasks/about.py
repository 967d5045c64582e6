"""What exports and model cards state about a model, beside its figures."""

from pydantic import field_validator

from tasks.section import Section


class About(Section):
    author: str = ""
    """Who made the model."""
    license: str = "apache-2.0"
    """Licence of the weights, by its identifier on the Hub; `koda import` sets that of the model's own card, or other.
    """
    language: tuple[str, ...] = ()
    """Languages of the model, by their codes (en); empty: those that are recognised in the held-out text, or, of an
    imported model, none."""
    base_model: str = ""
    """Where on the Hub the model is that was imported: USER/NAME."""
    url: str = ""
    """Where the model has its page."""
    data_license: str = ""
    """Licence of the text that it learned from, in a few words; empty: the card calls it unknown."""

    @field_validator("license")
    @classmethod
    def identifier(cls, license_: str) -> str:
        if not license_ or not all(letter.isalnum() or letter in ".-+" for letter in license_):
            raise ValueError(f"about.license = {license_!r}: an identifier as on the Hub, like apache-2.0, or other.")
        return license_
