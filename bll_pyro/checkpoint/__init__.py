"""The folder of ``bll.fit(..., checkpoint=...)``: parts of a fit that are kept, so that the same call goes on after a kill."""
