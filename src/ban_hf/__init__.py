"""Born-Again Networks (Furlanello et al., ICML 2018) for the Hugging Face ecosystem.

The public names are listed in `__init__.pyi`; each is imported when it is first used. The Auto
classes of transformers know our models as soon as both packages are imported, in either order.
"""

import lazy_loader

from ban_hf import registration

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
registration.register()
