"""Prints the machine's loads and stores of the kernels of packets, without a GPU; not for the interpreter.

    python packet_code.py cuda 90 32
    python packet_code.py hip gfx1100 32

A line each: the kernel, whether it is in the loop that waits, and the instruction.
"""

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hotset.backends.gpu.kernels.packets import receive, send, send_chosen

CONSTANTS = {"PTX": sys.argv[1] == "cuda", "BLOCK": 128, "ADD": True, "VALUES": True}
TYPES = dict.fromkeys(("x_ptr", "out_ptr", "score_ptr", "cutoff_ptr"), "*fp32") | {"word_ptr": "*i64"}
LABEL = re.compile(r"^([.$\w]+):")
BRANCH = re.compile(r"(?:bra(?:\.uni)?|s_c?branch\w*)\s+([.$\w]+)")
ACCESS = re.compile(r"((?:ld|st)\.(?:volatile\.)?global\S*|global_(?:load|store)\S*.*?off.*)")


def main() -> None:
    name, arch, warp = sys.argv[1:]
    target = GPUTarget(name, int(arch) if name == "cuda" else arch, int(warp))
    for kernel in (send, send_chosen, receive):
        signature, constants = {}, {}
        for parameter in kernel.params:
            if parameter.name in CONSTANTS:
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = CONSTANTS[parameter.name]
            else:
                pointer = parameter.name.endswith("_ptr")
                signature[parameter.name] = TYPES.get(parameter.name, "*i32" if pointer else "i32")
        compiled = triton.compile(
            ASTSource(kernel, signature, constants), target=target, options={"num_warps": 1}
        )
        lines = (compiled.asm["ptx"] if name == "cuda" else compiled.asm["amdgcn"]).splitlines()
        labels = {found[1]: i for i, line in enumerate(lines) if (found := LABEL.match(line))}
        loops = [
            (labels[found[1]], i)
            for i, line in enumerate(lines)
            if (found := BRANCH.search(line)) and labels.get(found[1], i) < i
        ]
        for i, line in enumerate(lines):
            for access in ACCESS.findall(line):
                # Code that is laid out backwards is no loop.
                waits = kernel is receive and any(first < i < last for first, last in loops)
                print(kernel.__name__, "waits" if waits else "once", access.strip())


if __name__ == "__main__":
    main()
