"""Makes the Python of `open_inference.proto`: `make proto` writes it into the tree, a test compares."""

import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).with_name("open_inference.proto")
PACKAGE = Path("appliance", "inference", "generated")
FILES = ("open_inference_pb2.py", "open_inference_pb2.pyi", "open_inference_pb2_grpc.py")


def generate(root: Path) -> None:
    """Write the generated files under `root`/appliance/inference/generated; the folder must be there.

    The .proto is given the package's own path, because the generated modules import each other by it.

    Raises:
        subprocess.CalledProcessError: The compiler refused the file; it says why on standard error.
    """
    subprocess.run(  # noqa: S603 - our own interpreter, and arguments that are constants
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{PACKAGE}={PROTO.parent}",
            f"--python_out={root}",
            f"--pyi_out={root}",
            f"--grpc_python_out={root}",
            str(PROTO),
        ],
        check=True,
    )


if __name__ == "__main__":
    generate(Path(__file__).resolve().parents[3])
