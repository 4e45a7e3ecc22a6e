"""What other recipes' networks say where the best recipe errs, counted by hand from records."""

from __future__ import annotations

import pytest
from fake_records import write_records

from bloodcell_lib import documents, opinions
from bloodcell_lib.cells import TITLES
from bloodcell_lib.numbers import Study
from bloodcell_lib.plans import CHOSEN, FOLDS, OURS, RECIPES
from bloodcell_lib.records import load_records


def study(folder, *recipes: str, seeds=(0,)) -> Study:
    for name in recipes:
        write_records(folder, list(FOLDS[name]), seeds=seeds)
    return Study.of(load_records(folder), "cpu")


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Study:
    return study(tmp_path_factory.mktemp("three"), "best", "main", "best_short")


def by_hand(study: Study) -> dict[str, dict[tuple[int, str], int]]:
    """What each recipe calls each image."""
    called = {}
    for name in ("best", "main", "best_short"):
        runs = [run.validation() for fold in FOLDS[name] for run in study.runs(fold)]
        called[name] = {
            (int(label), image): int(answer)
            for run in runs
            for label, image, answer in zip(run.labels, run.names, run.predicted)
        }
    return called


def test_mistakes_are_those_of_the_best_recipe_with_what_others_say(three):
    called, wrong = by_hand(three), opinions.mistakes(opinions.calls(three))
    assert list(wrong.columns) == ["best", "main", "best_short"]
    expected = {image for image, answer in called["best"].items() if answer != image[0]}
    assert set(wrong.index) == expected and 0 < len(expected) < 400
    for name in called:
        assert all(called[name][image] == answer for image, answer in wrong[name].items())
    alike = {image for image in expected if len({called[name][image] for name in called}) == 1}
    assert set(wrong.index[opinions.agreed(wrong)]) == alike and 0 < len(alike) < len(expected)


def test_mistakes_are_those_of_the_latest_recipe_once_it_is_cross_validated(tmp_path):
    recipes = study(tmp_path, "best", OURS[-1])
    wrong = opinions.mistakes(opinions.calls(recipes))
    assert list(wrong.columns) == [OURS[-1], "best"] and (wrong[OURS[-1]] != [k for k, _ in wrong.index]).all()
    assert opinions.sentence(recipes).startswith(f"Of {RECIPES[OURS[-1]]}'s {len(wrong)} mistakes")


def test_recipes_that_it_goes_on_from_or_that_go_on_from_it_are_not_asked(tmp_path):
    recipes = study(tmp_path, "best", "patient", "patient_travelled", "well_travelled")
    assert recipes.ancestors("well_travelled") == ["patient", "patient_travelled"]
    assert recipes.ancestors("patient") == []
    assert list(opinions.calls(recipes).columns) == [CHOSEN, "best"], "the one that predict has, not the latest"


def test_pairs_count_them_by_label_and_answer(three):
    called, table = by_hand(three), opinions.pairs(three)
    assert list(table.columns) == ["mistakes", "the main recipe", "the best recipe cut short", "all agree"]
    assert table["mistakes"].is_monotonic_decreasing
    (label, answer), row = next(table.iterrows())
    at = [
        image
        for image, given in called["best"].items()
        if given != image[0] and (TITLES[image[0]], TITLES[given]) == (label, answer)
    ]
    same = {name: [called[name][image] == called["best"][image] for image in at] for name in ("main", "best_short")}
    assert row["mistakes"] == len(at)
    assert row["the main recipe"] == sum(same["main"])
    assert row["all agree"] == sum(map(all, zip(*same.values())))


def test_the_sentence_counts_the_same(three):
    wrong = opinions.mistakes(opinions.calls(three))
    told = documents.markdown(opinions.sentence(three))
    same = int(opinions.agreed(wrong).sum())
    assert told.startswith(f"Of the best recipe's {len(wrong)} mistakes outside of training, ")
    by = sorted((wrong[name] == wrong["best"]).sum() for name in ("main", "best_short"))
    assert "The networks of 2 other recipes, which did not see" in told
    assert f"the same wrong answer to {by[0]} to {by[1]}, all to {same} ({same / 32:.1f} % of 3,200)" in told
    ids = [{label, answer} for (label, _), answer in wrong["best"].items()]
    most = max(sum(k in pair for pair in ids) for k in range(8))
    assert f"mistakes outside of training, {most} have " in told


def test_one_reader_is_told_as_one_and_none_not_at_all(tmp_path):
    told = opinions.sentence(study(tmp_path / "two", "best", "main"))
    assert "The networks of the main recipe, which" in told and "all to" not in told
    alone = study(tmp_path / "one", "best")
    assert opinions.sentence(alone) == "" and list(opinions.pairs(alone).columns) == ["mistakes"]
    nothing = Study.of([], "cpu")
    assert opinions.sentence(nothing) == "" and opinions.pairs(nothing).empty


def test_a_reader_with_another_seed_is_not_asked(tmp_path):
    write_records(tmp_path, list(FOLDS["main"]), seeds=(1,))
    assert list(opinions.calls(study(tmp_path, "best")).columns) == ["best"]
