"""Train and export `models/digits_lstm.onnx`, three LSTM that read a digit row by row.

    pip install -e ".[train]"
    python models/train/digits_lstm.py --out models

The data, the training and the seeds are those of `digits.py`.
"""

from __future__ import annotations

from digits import CLASSES, IMAGE_SIZE, Recipe, export_dynamo, make
from torch import Tensor, nn

HIDDEN = 128


class RowReader(nn.Module):
    """Three LSTM of 128 units over the 16 rows from the top down, and a Linear on the last."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(IMAGE_SIZE, HIDDEN, num_layers=3, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Read the state of the third LSTM behind the last row."""
        states, _ = self.lstm(image.squeeze(1))
        out: Tensor = self.head(states[:, -1])
        return out


if __name__ == "__main__":
    recipe = Recipe(RowReader, export_dynamo, epochs=100, peak_lr=3e-3, weight_decay=0.5)
    make({"digits_lstm": recipe}, __doc__)
