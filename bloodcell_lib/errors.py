"""The errors that the command line turns into one sentence."""


class BloodcellError(Exception):
    """Bad input, told in one sentence: what is wrong, where, what to do. The command line exits with code 2."""


class OtherRun(BloodcellError):
    """What lies where a run would go on or be recorded belongs to another configuration or other images."""


class RunFailed(Exception):
    """Something that was started did not end well (a notebook, a run of the study). The command line exits with 1."""
