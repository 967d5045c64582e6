from tests.model.training.conftest import job

__all__ = ["job"]  # a small training, as the tests of the trainer have it
