"""The public names of the data, and where each is."""

from .arguments import DataArguments as DataArguments
from .arguments import load_splits as load_splits
from .augmentation import ImageViews as ImageViews
from .augmentation import SetEpoch as SetEpoch
from .augmentation import collate as collate
from .description import IGNORED as IGNORED
from .description import POSITIONS as POSITIONS
from .description import DescribedDataset as DescribedDataset
from .description import describe_data as describe_data
from .grammar import ENGLISH as ENGLISH
from .grammar import Grammar as Grammar
from .images import BUILT_IN as BUILT_IN
from .images import ImageSplits as ImageSplits
from .images import load_images as load_images
from .text import BUILT_IN_TEXTS as BUILT_IN_TEXTS
from .text import TextSplits as TextSplits
from .text import load_text as load_text
from .text import word_tokenizer as word_tokenizer
from .windows import TokenWindows as TokenWindows
