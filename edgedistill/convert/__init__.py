"""Converts published data sets from their own formats to NWB 2, which the rest of edgedistill reads.

`convert_makin` takes the MATLAB file and the broadband file of one session of O'Doherty, Makin and Sabes.
`convert_flint` takes one file of Flint and others, 2012. Recordings of other formats are the work of neuroconv, see
docs/sessions.md, "Recordings in other formats".
"""

from edgedistill.convert.flint import convert_flint
from edgedistill.convert.makin import convert_makin
from edgedistill.convert.summary import ConvertedFile

__all__ = ["ConvertedFile", "convert_flint", "convert_makin"]
