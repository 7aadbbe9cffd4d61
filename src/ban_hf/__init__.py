from ban_hf.objectives import OBJECTIVES
