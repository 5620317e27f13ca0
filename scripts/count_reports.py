"""count_reports.py FOLDER: prints "PASSED FAILED" over all JUnit reports in the folder. Skipped tests are neither.

Counts test cases, not the totals that a report claims: ctest, pytest and Swift write those in three ways.
"""
import pathlib
import sys
import xml.etree.ElementTree as ElementTree

passed = failed = 0
for report in sorted(pathlib.Path(sys.argv[1]).glob("*.xml")):
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = {child.tag for child in case}
        if outcome & {"failure", "error"} or case.get("status") == "fail":
            failed += 1
        elif "skipped" not in outcome:
            passed += 1
print(passed, failed)
