"""Files of tensors: safetensors, written all or nothing."""

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def write_tensors(
    file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and some text in the place of what the file had.

    Parameters
    ----------
    file : Path
        Its folder is made if it isn't there. It gets the permissions that `open` would give it.
    tensors : mapping of str to Tensor
        Contiguous; no two share memory.
    metadata : mapping of str to str
        Kept with them.

    Raises
    ------
    OSError
        If it can't be written; the file has what it had, then.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.touch()
    mode = stat.S_IMODE(partial.stat().st_mode)
    try:
        save_file(dict(tensors), partial, metadata=dict(metadata))
        partial.chmod(mode)  # safetensors' own is for the owner alone
    except SafetensorError as error:  # a full disk, or a folder that is gone
        partial.unlink(missing_ok=True)
        raise OSError(errno.EIO, f"can't be written ({error})", str(file)) from error
    partial.replace(file)
