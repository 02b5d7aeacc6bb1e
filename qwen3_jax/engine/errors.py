"""Why a request is not spoken to its end."""


class EngineError(RuntimeError):
    """Why a request ended without being spoken to its end."""


class DeviceFailed(EngineError):
    """The engine's thread died under the request."""


class DeviceOutOfMemory(DeviceFailed):
    """It died because the device's memory was used up."""


class DeadlineExceeded(EngineError):
    """No audio by the request's deadline."""


class Stalled(EngineError):
    """Neither text came nor audio was taken for longer than the engine waits."""


class Full(EngineError):
    """Too many requests wait already."""


class ConsumerFailed(EngineError):
    """Its ``notify`` raised: nobody can be told of it any more."""


class NotFinite(EngineError, FloatingPointError):
    """What the model computed for the request is NaN or infinite; it was stopped before any of that was heard."""


class Closed(EngineError):
    """The engine is closed, or closing, or could not be restarted."""
