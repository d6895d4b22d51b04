"""The root of every error that Headrace raises on purpose. All of them pickle, since they cross Ray's processes."""


class HeadraceError(Exception):
    """Anything that Headrace itself refuses or reports; the message says what was received and what to do."""


class ConfigError(HeadraceError, ValueError):
    """A recipe or an override that cannot be used."""


class DataError(HeadraceError, ValueError):
    """Input rows or files that cannot be used."""


class StoreError(HeadraceError):
    """The store holds something other than what its manifests promise."""


class FencedError(HeadraceError):
    """This writer is no longer the newest: another run has taken the store."""


class StoreBusyError(HeadraceError):
    """Another trainer, alive, holds the store."""


class TrainingError(HeadraceError):
    """Training cannot go on: workers keep failing, or state is not what it should be."""
