r"""Born-again language models: a teacher, k generations of students, and their ensemble.

Without arguments: three generations of a small LSTM on sentences of a built-in grammar, whose best
possible perplexity is known, about two minutes on two CPU cores, no download.

The real thing (Furlanello et al. 2018, Table 6), a file of recipes/configs each:

    accelerate launch recipes/ban_ptb.py recipes/configs/ptb_lstm_1500.yaml

Flags override the file's values; any argument of BANTrainingArguments is a flag:

    accelerate launch recipes/ban_ptb.py recipes/configs/ptb_cpu.yaml \
        --dataset_name path/to/ptb --seed 1 --control

A Hub id, a local folder or a text file will do as --dataset_name. Students learn from labels and
teacher (BAN+L); --label_weight 0 leaves the labels out (BAN), with which, in the paper, a language
model does not learn. A run that was killed continues when the same command is given
again. With --plan nothing is trained: it says how long the run will take and what disk it needs.

Several objectives are students of one teacher, trained once; each has a folder of its own, and one
table and picture show them all. BAN beside BAN+L:

    accelerate launch recipes/ban_ptb.py --objective kd,kd+label --label_weight 0

With --push_to_hub --hub_model_id ns/family each generation is published as soon as it is finished,
the ensemble last. --teacher ns/family-gen2@commit continues from a published generation, --teacher
runs/family/generation-2 from one of yours.
"""

from pathlib import Path

from ban_hf import run_recipe

QUICKSTART = Path(__file__).parent / "configs" / "grammar.yaml"
REAL = "accelerate launch recipes/ban_ptb.py recipes/configs/ptb_lstm_1500.yaml"

if __name__ == "__main__":
    run_recipe("text-generation", quickstart=QUICKSTART, real=REAL, description=__doc__)
