r"""Choose which images to label next, by the features of an adapted backbone (TypiClust, ProbCover).

    python recipes/label_picker.py                              # 40 of the embedded digits
    python recipes/label_picker.py --dataset path/to/images --init outputs/mine --count 40
    python recipes/label_picker.py --config outputs/to_label/config.yaml \
        --labeled outputs/to_label/to_label.csv --output_dir outputs/to_label_next    # the next 40

The same as `tpssl-hf pick-labels`; the work is in tpssl_hf/commands/pick_labels.py.
"""

from tpssl_hf.process import prepare_process, run_cli

prepare_process()  # before torch is imported: OpenMP reads its settings once

from tpssl_hf.commands.pick_labels import main

if __name__ == "__main__":
    run_cli(main)
