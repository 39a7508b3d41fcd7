"""Training code in PyTorch: `DistributedOptimizer` in place of one of `torch.optim`; needs
`pip install 'paramserver[torch]'`."""

try:
    from worker.torch import DistributedOptimizer as DistributedOptimizer
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError("paramserver.torch needs PyTorch: pip install 'paramserver[torch]'") from None

__all__ = ["DistributedOptimizer"]
