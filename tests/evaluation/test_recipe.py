import pytest

from hf_alignbeam.evaluation.recipe import RECIPES, parse_recipe, read_recipe

TARGET = {"model": "m", "anchor": "a", "judge": "j", "prompts": ["testbed:harmful"]}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_of_the_package_is_valid(name):
    given = read_recipe(name)
    recipe = parse_recipe(given if given.get("model") else {**given, **TARGET})
    assert recipe.about
    assert recipe.systems[0].system == "plain"


def test_the_papers_tables_name_their_models():
    alignbeam, tsa = parse_recipe(read_recipe("alignbeam-paper")), parse_recipe(read_recipe("tsa-paper"))
    assert len(alignbeam.models) == len(tsa.models) == 5
    assert alignbeam.anchor.name == "Qwen/Qwen2.5-3B-Instruct"
    published = {system.models: (system.settings["mu"], system.settings["eta"]) for system in tsa.systems if system.models}
    assert published["meta-llama/Llama-3.1-8B-Instruct",] == (0.1, 1.3)
    assert {name for names in published for name in names} == {model.name for model in tsa.models}


def test_a_name_alone_is_enough():
    recipe = parse_recipe({**TARGET, "systems": ["plain", {"system": "alignbeam", "threshold": 0.2}]})
    assert recipe.models[0].name == "m"
    assert recipe.prompts[0].name == "harmful"
    assert [(system.name, dict(system.settings)) for system in recipe.systems] == [
        ("plain", {}),
        ("alignbeam", {"threshold": 0.2}),
    ]


def test_a_folder_takes_the_place_of_a_model_on_the_hub(tmp_path, monkeypatch):
    given = {"name": "someone/model", "folder": "local"}
    recipe = parse_recipe({**TARGET, "model": given, "judge": given, "systems": ["plain"]})
    for variable, source in (("", "someone/model"), (str(tmp_path), str(tmp_path / "local"))):
        monkeypatch.setenv("HF_ALIGNBEAM_MODELS", variable)
        assert recipe.models[0].source == recipe.judge.source == source
        assert recipe.models[0].name == "someone/model"


def test_a_single_entry_needs_no_list():
    recipe = parse_recipe({**TARGET, "prompts": "testbed:harmful", "systems": "plain"})
    assert (recipe.prompts[0].source, recipe.systems[0].name) == ("testbed:harmful", "plain")


def test_a_sweep_gives_one_system_for_each_value():
    swept = parse_recipe(
        {**TARGET, "systems": [{"name": "x", "system": "anchor-logits", "n_steps": 4, "sweep": {"alpha": [0.5, 1]}}]}
    )
    assert [(system.name, dict(system.settings), system.point) for system in swept.systems] == [
        ("x, alpha 0.5", {"n_steps": 4, "alpha": 0.5}, ("alpha", 0.5)),
        ("x, alpha 1", {"n_steps": 4, "alpha": 1}, ("alpha", 1)),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "`models` must name at least one, got none"),
        ({"prompts": []}, "`prompts` must name at least one, got none"),
        ({"systems": []}, "`systems` must name at least one, got none"),
        ({"models": ["m"]}, "The recipe must have no keys but .*, got 'models'"),
        ({7: "x"}, "The recipe must have no keys but .*, got '7'"),
        ({"systems": [{"name": "x"}]}, "must be 'plain', .* or 'steerer', got None"),
        ({"judge": {"name": "j", "wrong": float("nan")}}, "`wrong` of `judge` must be less than or equal to 1, got nan"),
        ({"systems": ["magic"]}, r"`system` of `systems\[0\]` must be 'plain', .* or 'steerer', got 'magic'"),
        ({"systems": ["plain", "plain"]}, "`systems` must have distinct names, got 'plain' twice"),
        ({"systems": ["alignbeam"], "judge": None}, "`judge` must be named for the system 'alignbeam', got none"),
        ({"systems": ["anchor"], "anchor": None}, "`anchor` must be named for the system 'anchor', got none"),
        ({"judge": {"nmae": "j"}}, "`judge` must have no keys but .*, got 'nmae'"),
        ({"judge": {"wrong": 0.1}}, "`judge` must have a `name`, got none"),
        ({"batchsize": 3}, "The recipe must have no keys but .*, got 'batchsize'"),
        ({"prompts": ["a/x.csv", "b/x.jsonl"]}, "`prompts` must have distinct names, got 'x' twice"),
        ({"model": ["m", {"name": "m", "dtype": "bfloat16"}]}, "`model` must have distinct names, got 'm' twice"),
        ({"anchor": {"name": "a", "tp_plan": "auto"}}, "`tp_plan` must be left out of the anchor"),
        ({"systems": [{"system": "plain", "models": ["n"]}]}, "`models` of the system 'plain' must be among m, got 'n'"),
        (
            {"systems": [{"system": "plain", "limit": 0}]},
            r"`limit` of `systems\[0\]` must be greater than or equal to 1, got 0. Leave it out",
        ),
        ({"systems": [{"system": "plain", "name": "a|b"}]}, "`name` must hold no |"),
        ({"systems": [{"system": "plain", "name": 1}]}, r"`name` of `systems\[0\]` must be a valid string, got 1"),
        ({"judge": {"name": "j", "wrong": "0.1"}}, "`wrong` of `judge` must be a valid number, got '0.1'"),
        ({"judge": {"name": "j", "wrong": 7}}, "`wrong` of `judge` must be less than or equal to 1, got 7"),
        ({"batch_size": "4"}, "`batch_size` must be a valid integer, got '4'"),
        ({"batch_size": True}, "`batch_size` must be a valid integer, got True"),
        ({"about": 5}, "`about` must be a valid string, got 5"),
        ({"prompts": [{"source": "x", "limit": "4"}]}, r"`limit` of `prompts\[0\]` must be a valid integer, got '4'"),
        ({"prompts": [{"source": "x", "where": ["a"]}]}, r"`where` of `prompts\[0\]` must be a valid dictionary, got \['a'\]"),
        (
            {"prompts": [{"source": "x", "harmful": "no"}]},
            r"`harmful` of `prompts\[0\]` must be a valid boolean or a valid dictionary, got 'no'",
        ),
        ({"prompts": [{"source": "x", "harmful": {"column": "x"}}]}, "`harmful` must be true, false or have a `column`"),
        ({"batch_size": 0}, "`batch_size` must be greater than or equal to 1, got 0"),
        ({"temperature": -1}, "`temperature` must be greater than or equal to 0, got -1. 0 is greedy search"),
        ({"prompts": [{"source": "x", "limit": 0}]}, r"`limit` of `prompts\[0\]` must be greater than or equal to 1, got 0"),
        (
            {"systems": [{"system": "anchor-logits", "sweep": {"alpha": []}}]},
            "`sweep` must name one setting and list its values",
        ),
    ],
)
def test_an_error_names_the_key_the_rule_and_the_value(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe({**TARGET, "systems": ["plain"], **changes})


def test_an_error_names_a_file_without_a_recipe(tmp_path):
    with pytest.raises(ValueError, match=r"must be a YAML file or one of alignbeam-paper, .*, got 'nothing'"):
        read_recipe("nothing")
    file = tmp_path / "recipe.yaml"
    file.write_text("- plain\n")
    with pytest.raises(ValueError, match="The recipe must be a mapping"):
        read_recipe(str(file))
    file.write_text("a: [\n")
    with pytest.raises(ValueError, match="The recipe .*recipe.yaml must be YAML"):
        read_recipe(str(file))
