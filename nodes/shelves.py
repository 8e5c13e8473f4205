"""Where the nodes keep each kind of file, and what writes and reads it."""

from ..modules.files.host import FOLDER, INVERSIONS, PROMPT_TOKENS, Shelf
from ..modules.inversion.file import load_inversion, save_inversion
from ..modules.prompt_tokens.adapter import load_prompt_adapter, save_prompt_adapter
from ..modules.tuning.weights import load_tune, save_tune

TUNES = Shelf(FOLDER, save_tune, load_tune)
ADAPTERS = Shelf(PROMPT_TOKENS, save_prompt_adapter, load_prompt_adapter)
INVERTED = Shelf(INVERSIONS, save_inversion, load_inversion)
