"""The coded terms of the objects: those of DICOM, SNOMED and UCUM where they have one, else ours.

Terms of our own are of the coding scheme ``99OVERREAD``; each names its meaning in full.
"""

from collections.abc import Mapping

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.sr import AlgorithmIdentification, CodedConcept
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from edge.dicom_out.identity import MANUFACTURER
from edge.findings import DecidedBy, SecondReading

SCHEME = "99OVERREAD"


def own(value: str, meaning: str) -> CodedConcept:
    """Return a term of our own; value and meaning are at most 16 and 64 characters."""
    return CodedConcept(value, SCHEME, meaning)


def scheme() -> CodingSchemeIdentificationItem:
    """Return what identifies our coding scheme in an object."""
    return CodingSchemeIdentificationItem(
        SCHEME, name="Overread terms", responsible_organization=MANUFACTURER
    )


CHEST_CT = CodedConcept("24627-2", "LN", "CT Chest")
NODULE: Code = codes.SCT.Nodule
POSSIBLE_NODULE = own("POSSIBLE-NODULE", "Possible nodule, of low probability")
LUNG: Code = codes.SCT.Lung
ABNORMAL: Code = codes.SCT.MorphologicallyAbnormalStructure
SIDES: Mapping[str, Code] = {"right": codes.SCT.Right, "left": codes.SCT.Left}
ZONES: Mapping[str, Code] = {
    "upper": codes.SCT.UpperZoneOfLung,
    "middle": codes.SCT.MiddleZoneOfLung,
    "lower": codes.SCT.LowerZoneOfLung,
}
YES_NO: Mapping[bool, Code] = {True: codes.SCT.Yes, False: codes.SCT.No}

# measurements
DIAMETER: Code = codes.SCT.Diameter
VOLUME: Code = codes.SCT.Volume
CERTAINTY: Code = codes.DCM.CertaintyOfFinding
EDGE_SCORE = own("EDGE-SCORE", "Probability of being a nodule by the edge alone")
CLOUD_PROBABILITY = own("CLOUD-PROB", "Probability of being a nodule by the cloud alone")
MALIGNANCY = own("MALIGNANCY", "Looks malignant (0 to 1) to the cloud, not a probability")
OF_VOLUME = own("SPHERE-OF-VOLUME", "Diameter of the sphere of the outline's volume")
ESTIMATED = own("SPHERE-ESTIMATED", "Network's estimate of the diameter of such a sphere")
OF_VOXELS = own("OUTLINE-VOXELS", "Volume of the voxels of the outline")
FINDINGS = own("FINDINGS", "Number of findings")
POSSIBLE_FINDINGS = own("POSSIBLE", "Number of possible findings")
MM: Code = codes.UCUM.Millimeter
MM3: Code = codes.UCUM.CubicMillimeter
PERCENT: Code = codes.UCUM.Percent
ONE: Code = codes.UCUM.NoUnits

# questions and answers
LISTED_AS = own("LISTED-AS", "List of the report")
LISTS: Mapping[bool, CodedConcept] = {
    True: own("FINDING", "Finding"),
    False: own("POSSIBLE-FINDING", "Possible finding"),
}
TYPE = own("NODULE-TYPE", "Type of nodule")
TYPES: Mapping[str, CodedConcept] = {
    "solid": own("SOLID", "Solid nodule"),
    "part-solid": own("PART-SOLID", "Part-solid nodule"),
    "ground glass": own("GROUND-GLASS", "Ground-glass nodule"),
}
DECIDED_BY = own("DECIDED-BY", "Reader that decided")
DECIDED: Mapping[DecidedBy, CodedConcept] = {
    DecidedBy.EDGE: own("EDGE", "Edge"),
    DecidedBy.CLOUD: own("CLOUD", "Edge and cloud together"),
    DecidedBy.EDGE_ALONE: own("EDGE-ALONE", "Edge alone, the second reading is missing"),
}
SMALL = own("SMALL", "Smaller than 6 mm")
SECOND_READING = own("SECOND-READING", "Second reading")
SECOND_READINGS: Mapping[SecondReading, CodedConcept] = {
    SecondReading.COMPLETE: own("COMPLETE", "Second reading complete"),
    SecondReading.PARTIAL: own("PARTIAL", "Second reading partial"),
    SecondReading.MISSING: own("MISSING", "Second reading missing"),
    SecondReading.OFF: own("OFF", "No second reader"),
}
# the status of each analysis (CID 6042): of the edge, which has succeeded, and of the cloud
DETECTIONS: Code = codes.DCM.SummaryOfDetections
ANALYSES: Code = codes.DCM.SummaryOfAnalyses
STATUSES: Mapping[SecondReading, Code] = {
    SecondReading.COMPLETE: codes.DCM.Succeeded,
    SecondReading.PARTIAL: codes.DCM.PartiallySucceeded,
    SecondReading.MISSING: codes.DCM.Failed,
    SecondReading.OFF: codes.DCM.NotAttempted,
}
GUARANTEE_GIVEN = own("GUARANTEE-GIVEN", "Guarantee on missed nodules given")

# texts
COMMENT: Code = codes.DCM.Comment
CENTRE: Code = codes.DCM.Center
DISCLAIMER = own("DISCLAIMER", "Disclaimer")
GUARANTEE = own("GUARANTEE", "Guarantee on missed nodules")
LIMITATION = own("LIMITATION", "Limitation")
COVERAGE = own("COVERAGE", "Coverage of the lungs")
READING = own("READING-TEXT", "State of the second reading")
CHANGE = own("CHANGE", "Change since an earlier version")
RESULT = own("RESULT", "Result in one line, and what to do next")
DISAGREEMENT = own("DISAGREEMENT", "Strong disagreement of the two readers")
REASON = own("REASON", "Reason for the decision")
PART = own("PART", "Another object of the same version of the report")
EVALUATIONS = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")


def algorithm(model: str) -> AlgorithmIdentification:
    """Return the identification of a model (TID 4019), named as in a report: name and version."""
    name, version = _name_and_version(model)
    return AlgorithmIdentification(
        name, version, family=codes.DCM.ArtificialIntelligence, manufacturer=MANUFACTURER
    )


def segmentation_algorithm(model: str) -> AlgorithmIdentificationSequence:
    """Return the same for a segmentation."""
    name, version = _name_and_version(model)
    family: Code = codes.DCM.ArtificialIntelligence
    return AlgorithmIdentificationSequence(name, family, version, source=MANUFACTURER)


def _name_and_version(model: str) -> tuple[str, str]:
    name, _, version = model.strip().partition(" ")
    return name[:64] or "unknown", version[:64] or "unknown"
