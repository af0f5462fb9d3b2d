from pathlib import Path

from benchmarks import tables


def test_the_figures_in_the_readme_are_those_of_the_result_files():
    _, within, _ = tables.split(tables.README.read_text(encoding="utf-8"))
    assert within == tables.results()


def test_the_readme_links_to_files_that_exist():
    text = tables.README.read_text(encoding="utf-8")
    links = [link.split(")")[0] for link in text.split("](")[1:]]
    missing = [link for link in links if "://" not in link and not (Path(tables.README).parent / link).exists()]
    assert not missing


def test_the_readme_has_the_published_snippet():
    snippet = """+ from DeepCache import DeepCacheSDHelper
+ helper = DeepCacheSDHelper(pipe=pipe)
+ helper.set_params(
+     cache_interval=3,
+     cache_branch_id=0,
+ )
+ helper.enable()"""
    assert snippet in tables.README.read_text(encoding="utf-8")
