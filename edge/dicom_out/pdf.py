"""Encapsulate the PDF of the report in a DICOM object, for archives that show documents."""

from highdicom import SOPClass
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from edge.dicom_out.identity import Device, Kind, complete, general, names_of, patient_and_study
from edge.dicom_out.subject import Source
from edge.report.model import Report


def encapsulated_pdf(report: Report, source: Source, device: Device, pages: bytes) -> Dataset:
    """Return the document as a DICOM object (PS3.3, A.45.1); ``pages`` is the PDF."""
    names = names_of(report)
    made = SOPClass(
        sop_class_uid=EncapsulatedPDFStorage,
        modality="DOC",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **patient_and_study(source),
        **general(Kind.PDF, names, device),
    )
    made.ConversionType = "WSD"
    made.AcquisitionDateTime = None
    made.BurnedInAnnotation = "YES"  # the pages name the patient
    made.VerificationFlag = "UNVERIFIED"
    made.DocumentTitle = f"Overread report, version {names.version}"
    report_of_chest = codes.LN.CTChestReport
    made.ConceptNameCodeSequence = [CodedConcept.from_code(report_of_chest)]
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocument = pages + b"\0" * (len(pages) % 2)
    made.EncapsulatedDocumentLength = len(pages)
    if not source.unfit:
        made.SourceInstanceSequence = [_reference(image) for image in source.images]
    complete(made, source, names)
    return made


def _reference(image: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return reference
