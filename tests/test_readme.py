import pytest

from benchmarks import tables

DOCS = sorted((tables.README.parent / "docs").glob("*.md"))


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_the_figures_in_a_page_are_those_of_the_result_files(page):
    _, within, _ = tables.split(page.read_text(encoding="utf-8"))
    assert within == tables.pages()[page]


@pytest.mark.parametrize("page", [tables.README, *DOCS], ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page):
    links = [link.split(")")[0].split("#")[0] for link in page.read_text(encoding="utf-8").split("](")[1:]]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
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
