"""A file of probes, and the judge that a folder with one is."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hf_alignbeam.hub.judge_loading import JudgeSettings, load_judge
from hf_alignbeam.hub.model_loading import load_model
from hf_alignbeam.judges.calibration import CalibratedJudge
from hf_alignbeam.judges.probes import probe_judge
from hf_alignbeam.judges.probes.known_probes import KnownProbes
from hf_alignbeam.judges.probes.probe_judge import ProbeJudge
from hf_alignbeam.judges.probes.saved_probes import PROBES_FILE, read_probes

REQUESTS = [("Where is the mill?", True), ([{"role": "user", "content": "Who bakes bread?"}], False)]
ANSWERS = [("Where is the mill?", "Behind the church.", True), ("Who bakes bread?", "I won't say.", False)]
GRADIENT_WARNING = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers', as peft asks


@pytest.fixture
def folders(tiny_qwen, byte_tokenizer, tmp_path, monkeypatch):
    """The folders of a model and of a judge that was fitted on it, and that judge."""
    monkeypatch.setattr(probe_judge, "MIN_SEPARATION", 0.0)
    tiny_qwen.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(tiny_qwen.config, "_name_or_path", str(tmp_path / "model"))
    judge = ProbeJudge(tiny_qwen, byte_tokenizer, requests=REQUESTS, answers=ANSWERS)
    judge.save_pretrained(tmp_path / "own" / "judge")
    return tmp_path / "model", tmp_path / "own" / "judge", judge


def test_a_folder_with_probes_is_a_judge(folders):
    _, folder, judge = folders
    loaded = load_judge(str(folder))
    assert isinstance(loaded, ProbeJudge)
    given = ["Who bakes bread?", "How do I open a box?"], ["The baker.", "No."]
    torch.testing.assert_close(loaded(*given), judge(*given), atol=1e-5, rtol=1e-4)
    assert load_judge(str(folder)) is loaded
    assert isinstance(load_judge(str(folder), JudgeSettings(threshold=0.3)), CalibratedJudge)


def test_further_examples_change_the_probes(folders, tiny_qwen, byte_tokenizer):
    _, _, judge = folders
    assert not torch.equal(judge.probes.request.weight, ProbeJudge(tiny_qwen, byte_tokenizer).probes.request.weight)


@pytest.fixture
def adapted(folders):
    """The model of `folders` with an adapter that changes it."""
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folders[0]), lora).eval()


@GRADIENT_WARNING
def test_an_adapter_goes_into_the_folder_of_its_probes(folders, adapted, byte_tokenizer, tmp_path):
    """They are probes of the adapted model: with its base alone they would be silently wrong."""
    judge = ProbeJudge(adapted, byte_tokenizer, requests=REQUESTS, answers=ANSWERS)
    judge.save_pretrained(tmp_path / "adapted")
    names = {path.name for path in (tmp_path / "adapted").iterdir()}
    assert names >= {PROBES_FILE, "adapter_config.json", "adapter_model.safetensors"}
    (tmp_path / "adapted").rename(tmp_path / "moved")
    given = ["Who bakes bread?", "How do I open a box?"], ["The baker.", "No."]
    torch.testing.assert_close(load_judge(str(tmp_path / "moved"))(*given), judge(*given), atol=1e-5, rtol=1e-4)
    on_base = ProbeJudge(AutoModelForCausalLM.from_pretrained(folders[0]), byte_tokenizer, judge.probes)
    assert not torch.allclose(on_base(*given), judge(*given), atol=1e-3)


@GRADIENT_WARNING
def test_an_adapter_that_cannot_be_saved_is_refused(adapted, byte_tokenizer, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")
    judge = ProbeJudge(load_model(tmp_path / "adapter"), byte_tokenizer)
    with pytest.raises(ValueError, match="`model` must be a `PeftModel` for its adapter to be saved with probes, got Qwen3"):
        judge.save_pretrained(tmp_path / "judge")
    assert not (tmp_path / "judge").exists()


@pytest.mark.parametrize("settings", [{"rubric": "yes-no"}, {"labels": {"unsafe": 1.0}}, {"profile": "llama-guard"}])
def test_it_is_asked_nothing(folders, settings):
    with pytest.raises(ValueError, match="must be used as it is, for it holds probes of hidden states"):
        load_judge(str(folders[1]), JudgeSettings(**settings))


def test_a_broken_file_is_named(folders):
    _, folder, _ = folders
    (folder / PROBES_FILE).write_bytes(b"probes")
    with pytest.raises(ValueError, match=f"{PROBES_FILE} must hold the probes of a judge, but does not"):
        load_judge(str(folder))
    with pytest.raises(FileNotFoundError):
        read_probes(folder / "none")
    with pytest.raises(OSError, match="os error"):  # a folder in place of the file
        read_probes(folder)


def test_a_model_without_a_name_cannot_be_named_in_the_file(tiny_qwen, byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(probe_judge, "MIN_SEPARATION", 0.0)
    with pytest.raises(ValueError, match="`model` must have been loaded by name for its probes to be saved"):
        ProbeJudge(tiny_qwen, byte_tokenizer).save_pretrained(tmp_path)


def test_probes_of_another_width_are_refused(folders, tiny_qwen, byte_tokenizer):
    probes = folders[2].probes
    short = probes.request._replace(weight=probes.request.weight[:8])
    with pytest.raises(ValueError, match="`probes` must be of 64 features, as .* has them, got 8 and 64"):
        ProbeJudge(tiny_qwen, byte_tokenizer, probes._replace(request=short))


def test_probes_of_another_model_of_the_same_width_are_refused(folders, byte_tokenizer, monkeypatch):
    """Its files may have been replaced. Known exchanges are no longer told apart."""
    name, folder, judge = folders
    monkeypatch.setattr(probe_judge, "MIN_SEPARATION", judge.probes.separation - 0.01)
    assert isinstance(load_judge(str(folder)), ProbeJudge)
    other = AutoModelForCausalLM.from_pretrained(name)
    other.get_input_embeddings().weight.data.neg_()
    with pytest.raises(ValueError, match="`probes` must tell harmful from harmless exchanges by the states of .* fit them anew"):
        ProbeJudge(other, byte_tokenizer, judge.probes)
    monkeypatch.setattr(KnownProbes, "score", lambda *args: torch.nan)
    with pytest.raises(ValueError, match="right in nan % of pairs"):
        ProbeJudge(AutoModelForCausalLM.from_pretrained(name), byte_tokenizer, judge.probes)
