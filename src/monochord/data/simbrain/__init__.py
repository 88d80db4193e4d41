"""A simulated brain that looks at pictures, with the truth beside the data: every fMRI method is measured on it."""

from monochord.data.simbrain.brain import SimBrain as SimBrain
from monochord.data.simbrain.brain import Subject as Subject
from monochord.data.simbrain.brain import Truth as Truth
from monochord.data.simbrain.calibration import calibrate as calibrate
from monochord.data.simbrain.scenes import Stimuli as Stimuli
from monochord.data.simbrain.scenes import pictures as pictures
from monochord.data.simbrain.scenes import scenes as scenes
from monochord.data.simbrain.series import parcels as parcels
from monochord.data.simbrain.series import series as series
