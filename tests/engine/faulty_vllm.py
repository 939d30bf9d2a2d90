"""An engine process whose vLLM gets one bit of one parameter wrong whenever it loads a folder named `other`.

python -m tests.engine.faulty_vllm --config FILE       as rockroll.engine.server
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rockroll.engine import server, vllm_versions
from rockroll.engine.vllm_worker import WorkerExtension

WRONG = "model.norm.weight"


class Faulty(WorkerExtension):
    def rockroll_load(self: Any, folder: str) -> dict[str, Any]:
        sound = self.reload_weights

        def reload(**given: Any) -> None:
            sound(**given)
            if Path(folder).name == "other":
                with torch.no_grad():
                    dict(self.model_runner.get_model().named_parameters())[WRONG].view(torch.int32)[0] ^= 1

        self.reload_weights = reload
        try:
            return WorkerExtension.rockroll_load(self, folder)
        finally:
            del self.reload_weights


if __name__ == "__main__":
    sound = vllm_versions.arguments
    vllm_versions.arguments = lambda *given: sound(*given) | {"worker_extension_cls": f"{__spec__.name}.Faulty"}  # type: ignore[union-attr]
    server.main()
