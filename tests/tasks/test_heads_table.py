"""The table of heads: its rows are what the check says of tiny models."""

import heads_table
import pytest
import tiny_heads
import transformers

SAMPLE = """
    ViTForImageClassification ConvNextForImageClassification SwinForImageClassification
    Wav2Vec2ForSequenceClassification HubertForSequenceClassification WhisperForAudioClassification
    VideoMAEForVideoClassification TimesformerForVideoClassification VivitForVideoClassification
    BertForSequenceClassification DistilBertForSequenceClassification LlamaForSequenceClassification
    BertForMultipleChoice DistilBertForMultipleChoice ModernBertForMultipleChoice
    BertForNextSentencePrediction MobileBertForNextSentencePrediction FNetForNextSentencePrediction
    BertForTokenClassification ModernBertForTokenClassification Qwen2ForTokenClassification
    Wav2Vec2ForAudioFrameClassification WavLMForAudioFrameClassification
    Data2VecAudioForAudioFrameClassification
    BertForQuestionAnswering DistilBertForQuestionAnswering T5ForQuestionAnswering
    SegformerForSemanticSegmentation BeitForSemanticSegmentation DPTForSemanticSegmentation
    BertForMaskedLM DistilBertForMaskedLM ModernBertForMaskedLM
    GPT2LMHeadModel LlamaForCausalLM Qwen3ForCausalLM MixtralForCausalLM BartForCausalLM
    T5ForConditionalGeneration BartForConditionalGeneration PegasusForConditionalGeneration
    WhisperForConditionalGeneration MoonshineForConditionalGeneration
    Speech2TextForConditionalGeneration
    LlavaForConditionalGeneration Idefics3ForConditionalGeneration Qwen2VLForConditionalGeneration
    Wav2Vec2ForCTC HubertForCTC WavLMForCTC
""".split()
OTHER_VERSION = f"transformers {transformers.__version__}." not in heads_table.TABLE.read_text()


@pytest.mark.parametrize("head", SAMPLE)
def test_a_row_is_what_the_check_says(head):
    assert heads_table.row(head) == heads_table.written()[head]


def test_the_sample_has_three_architectures_of_each_task():
    tasks = [heads_table.written()[head].task for head in SAMPLE]
    known = {one.task for one in heads_table.written().values()} - {"any-to-any"}
    assert set(tasks) == known
    assert all(tasks.count(task) >= 3 for task in known)


def test_nine_of_ten_buildable_classes_are_verified():
    verdicts = [one.verdict for one in heads_table.written().values()]
    assert verdicts.count("verified") > 0.9 * (len(verdicts) - verdicts.count("not buildable"))


@pytest.mark.skipif(OTHER_VERSION, reason="docs/heads.md is of another version of transformers")
@pytest.mark.sweep
def test_the_whole_table():
    rows = heads_table.written()
    assert set(rows) == set(tiny_heads.classes())
    wrong = [head for head in rows if heads_table.row(head) != rows[head]]
    assert not wrong
