import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import DeepCache

DOCUMENTED = (
    "DeepCache.app.explorer",
    "DeepCache.app.form",
    "DeepCache.app.guard",
    "DeepCache.app.python_lines",
    "DeepCache.app.recommendation",
    "DeepCache.app.render_worker",
    "DeepCache.app.step_strip",
    "DeepCache.batch.folder",
    "DeepCache.batch.job",
    "DeepCache.batch.record",
    "DeepCache.batch.row",
    "DeepCache.bench.ablation",
    "DeepCache.bench.benchmark",
    "DeepCache.bench.result_file",
    "DeepCache.bench.variants",
    "DeepCache.cli.options",
    "DeepCache.comfyui.block_numbers",
    "DeepCache.comfyui.model_call",
    "DeepCache.config",
    "DeepCache.difference_image",
    "DeepCache.engine.attach",
    "DeepCache.engine.arguments",
    "DeepCache.engine.cost",
    "DeepCache.engine.layouts",
    "DeepCache.export.call",
    "DeepCache.export.exporting",
    "DeepCache.export.formats",
    "DeepCache.export.runtime",
    "DeepCache.extras",
    "DeepCache.files",
    "DeepCache.flops",
    "DeepCache.generation.a1111",
    "DeepCache.generation.comparison",
    "DeepCache.generation.differences",
    "DeepCache.generation.generate",
    "DeepCache.generation.image_inputs",
    "DeepCache.generation.prepare",
    "DeepCache.generation.prompt_row",
    "DeepCache.generation.recorded",
    "DeepCache.generation.settings",
    "DeepCache.helper",
    "DeepCache.judge.captions",
    "DeepCache.judge.judge",
    "DeepCache.judge.recogniser",
    "DeepCache.metrics",
    "DeepCache.models.adapters",
    "DeepCache.models.architectures",
    "DeepCache.models.description",
    "DeepCache.models.device",
    "DeepCache.models.loading",
    "DeepCache.models.memory",
    "DeepCache.models.schedulers",
    "DeepCache.models.without_weights",
    "DeepCache.pareto",
    "DeepCache.plan",
    "DeepCache.prompts.bundled",
    "DeepCache.prompts.reading",
    "DeepCache.prompts.sampling",
    "DeepCache.report.heat_map",
    "DeepCache.report.numerals",
    "DeepCache.report.page",
    "DeepCache.report.published",
    "DeepCache.runtime",
    "DeepCache.schedule",
    "DeepCache.text",
    "DeepCache.tune.search",
    "DeepCache.tune.tuning",
)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_example_in_a_docstring_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed


def test_all_modules_with_examples_are_listed():
    found = {
        module.name
        for module in pkgutil.walk_packages(DeepCache.__path__, "DeepCache.")
        if ">>> " in Path(importlib.util.find_spec(module.name).origin).read_text(encoding="utf-8")
    }
    assert found == set(DOCUMENTED)
