"""Files of ROCK's SDK: read_file, write_file, upload.

In: text, and files as multipart forms. Out: text; errors that the SDK cannot take for contents. Leaves the box's side
to client_files.py.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile

from rockroll.errors import FileError, RockrollError, UsageError
from rockroll.sandbox.client_files import PART
from rockroll.sandbox.rock import forms
from rockroll.sandbox.rock.forms import Answer, Envelope, success
from rockroll.sandbox.rock.link import BoxFiles, as_bytes

router = APIRouter(route_class=Envelope, default_response_class=Answer)

READ = 64 << 20
"""Most bytes of a file that one answer carries: all of it is held as text."""


@router.post("/read_file")
async def read_file(form: forms.Read) -> Answer:
    box = BoxFiles(form.sandbox_id)
    found = await box.look(form.path)
    if found is None:
        raise FileError(f"{form.path}: no such file in the sandbox", missing=True)
    if found.size > READ:
        raise FileError(
            f"{form.path} has {found.size} bytes and read_file carries at most {READ}, as text; use `rockroll sandbox"
            " cp`, or read it in parts with execute"
        )
    data = await box.read_file(form.path, limit=READ)
    encoding = form.encoding or "utf-8"
    try:
        return success({"content": data.decode(encoding, form.errors or "strict")})
    except LookupError as error:
        raise UsageError(f"{error}; encoding and errors are those of Python's bytes.decode") from None
    except ValueError as error:
        raise FileError(
            f'{form.path} is not {encoding} text ({error}); encoding="latin-1" gives every byte as one character'
        ) from None


@router.post("/write_file")
async def write_file(form: forms.Write) -> Answer:
    """A file that is there keeps its mode."""
    box = BoxFiles(form.sandbox_id)
    there = await box.look(form.path)
    data = as_bytes(form.content, "content")
    await box.write_file(form.path, data, mode=there.mode & 0o777 if there else 0o644)
    return success({"success": True, "message": ""})


@router.post("/upload")
async def upload(
    file: Annotated[UploadFile, File()],
    target_path: Annotated[str, Form()],
    sandbox_id: Annotated[str, Form(min_length=1)],
) -> Answer:
    """Exact bytes. The file appears under its name when it is whole."""
    box, target = BoxFiles(sandbox_id), PurePosixPath(target_path)
    there = await box.look(target_path)
    if there and there.kind == "dir":
        raise FileError(f"{target_path} is a folder; target_path is the path of the file itself")
    beside = str(target.with_name(f".rockroll-{os.urandom(6).hex()}")) if target.name else target_path
    try:
        await box.write_file(beside, await file.read(PART))
        while part := await file.read(PART):
            await box.write_file(beside, part, append=True)
        await box.move(beside, target_path)
    except BaseException:
        with contextlib.suppress(RockrollError):
            await box.remove(beside)
        raise
    return success({"success": True, "message": "", "file_name": target.name})
