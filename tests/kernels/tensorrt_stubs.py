"""Writes implementations of TensorRT's interfaces that abort, from its headers, for a fake to derive from.

TensorRT's classes of one version have dozens of pure virtual functions, and another version has others. A fake that
implements the ten it needs derives from a stub that is made from the same headers it is compiled with.
"""

from __future__ import annotations

import re
from pathlib import Path

INTERFACES = {
    "VRuntime": "NvInferImpl.h",
    "VCudaEngine": "NvInferImpl.h",
    "VExecutionContext": "NvInferImpl.h",
    "IPluginRegistry": "NvInferRuntimeCommon.h",
}


def stubs(headers: Path) -> str:
    """Returns a header with `Stub…` for each interface; it includes NvInferRuntime.h."""
    classes = [_stub(name, (headers / file).read_text()) for name, file in INTERFACES.items()]
    text = "\n".join(classes)
    return (
        "#pragma GCC system_header\n#include <cstdlib>\n#include <NvInferRuntime.h>\n"
        f"namespace nvinfer1 {{ namespace apiv {{\n{text}\n}} }}\n"
    )


def _stub(name: str, header: str) -> str:
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", header, flags=re.DOTALL)
    code = re.sub(r"^#if ENABLE_.*?^#endif", "", code, flags=re.DOTALL | re.MULTILINE)  # features that are not compiled
    body = re.search(rf"class {name}\b[^;{{]*\{{(.*?)\n\}};", code, flags=re.DOTALL)
    assert body, f"no class {name}"
    methods = re.findall(r"\bvirtual\s+([^;{}~]+?)\s*=\s*0\s*;", body[1])
    assert methods, f"{name} has no pure virtual functions"
    lines = [f"    {' '.join(method.split())} override {{ std::abort(); }}" for method in methods]
    return "\n".join([f"struct Stub{name} : {name} {{", *lines, "};"])
