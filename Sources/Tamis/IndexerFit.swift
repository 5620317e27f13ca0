// Sections 8.3 and 8.4 of the header: fits and diagnoses.

public import CTamis
import TamisFit
import TamisRuntime

@_cdecl("tamis_indexer_fit") @implementation
public func tamis_indexer_fit(
  _ indexer: OpaquePointer?, _ capture: OpaquePointer?, _ options: UnsafePointer<tamis_fit_options>?,
  _ report: UnsafeMutablePointer<tamis_fit_report>?
) -> tamis_status {
  boundary("tamis_indexer_fit") { () throws(TamisError) in
    let indexer: LearnedIndexer = try object(indexer, "indexer")
    let capture: Capture = try object(capture, "capture")
    let given = try Tamis.options(options, defaults: tamis_fit_options())
    let theirs = try report.map { report throws(TamisError) in try callersSize(UnsafePointer(report), "report") }
    var wanted = FitOptions()
    if given.steps != 0 { wanted.steps = Int(given.steps) }
    if given.rows != 0 { wanted.rows = Int(given.rows) }
    if given.learning_rate != 0 { wanted.learningRate = given.learning_rate }
    wanted.selected = Int(given.selected)
    wanted.seed = given.seed
    wanted.randomStart = given.random_start != 0
    wanted.progress = given.on_step
    wanted.user = given.user
    let found = try indexer.fit(capture, wanted)
    guard let report, let theirs else { return }
    var filled = tamis_fit_report()
    filled.size = UInt32(truncatingIfNeeded: theirs)
    filled.steps = UInt32(truncatingIfNeeded: found.steps)
    filled.warnings = found.warnings.rawValue
    filled.sequences = UInt64(truncatingIfNeeded: found.sequences)
    filled.rows = UInt64(truncatingIfNeeded: found.rows)
    filled.first_loss = found.firstLoss
    filled.last_loss = found.lastLoss
    filled.seconds = found.seconds
    filled.flops = Double(found.flops)
    filled.closed_start = found.closedStart ? 1 : 0
    fill(report, theirs, with: filled)
  }
}

@_cdecl("tamis_indexer_diagnose") @implementation
public func tamis_indexer_diagnose(
  _ indexer: OpaquePointer?, _ capture: OpaquePointer?, _ options: UnsafePointer<tamis_diagnosis_options>?,
  _ at: UnsafeMutablePointer<tamis_mass_at>?, _ count: Int, _ diagnosis: UnsafeMutablePointer<tamis_diagnosis>?
) -> tamis_status {
  boundary("tamis_indexer_diagnose") { () throws(TamisError) in
    let indexer: LearnedIndexer = try object(indexer, "indexer")
    let capture: Capture = try object(capture, "capture")
    let given = try Tamis.options(options, defaults: tamis_diagnosis_options())
    let diagnosis = try required(diagnosis, "diagnosis")
    let theirs = try callersSize(UnsafePointer(diagnosis), "diagnosis")
    var wanted = DiagnosisOptions()
    for row in try masses(at, count) { wanted.k.append(Int(clamping: row.k)) }
    if given.mass != 0 { wanted.mass = given.mass }
    if given.least_visible != 0 { wanted.leastVisible = Int(given.least_visible) }
    let found = try indexer.diagnose(capture, wanted)
    for (i, mass) in found.at.enumerated() {
      at?[i] = tamis_mass_at(
        k: UInt64(truncatingIfNeeded: mass.k), oracle: mass.oracle, indexer: mass.indexer, recency: mass.recency,
        random: mass.random, recall: mass.recall)
    }
    var filled = tamis_diagnosis()
    filled.size = UInt32(truncatingIfNeeded: theirs)
    filled.warnings = found.warnings.rawValue
    filled.sequences = UInt64(truncatingIfNeeded: found.sequences)
    filled.rows = UInt64(truncatingIfNeeded: found.rows)
    filled.divergence = found.divergence
    filled.mass = wanted.mass
    filled.oracle_k = UInt64(truncatingIfNeeded: found.oracleK)
    filled.indexer_k = UInt64(truncatingIfNeeded: found.indexerK)
    fill(diagnosis, theirs, with: filled)
  }
}

/// The caller's rows, of which there may be none.
private func masses(
  _ at: UnsafePointer<tamis_mass_at>?, _ count: Int
) throws(TamisError) -> UnsafeBufferPointer<tamis_mass_at> {
  guard count >= 0, count <= 64 else { throw TamisError(.argument, "count is \(count), expected 0 to 64") }
  guard at != nil || count == 0 else { throw TamisError(.argument, "at is NULL") }
  try requireAligned(UnsafeMutablePointer(mutating: at), "at")
  return UnsafeBufferPointer(start: at, count: count)
}

@_cdecl("tamis_diagnosis_text") @implementation
public func tamis_diagnosis_text(
  _ diagnosis: UnsafePointer<tamis_diagnosis>?, _ at: UnsafePointer<tamis_mass_at>?, _ count: Int,
  _ text: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tamis_status {
  boundary("tamis_diagnosis_text") { () throws(TamisError) in
    guard diagnosis != nil else { throw TamisError(.argument, "diagnosis is NULL") }
    let given = try Tamis.options(diagnosis, defaults: tamis_diagnosis(), "diagnosis")
    var found = Diagnosis()
    found.sequences = Int(clamping: given.sequences)
    found.rows = Int(clamping: given.rows)
    found.warnings = Warnings(rawValue: given.warnings)
    found.divergence = given.divergence
    found.oracleK = Int(clamping: given.oracle_k)
    found.indexerK = Int(clamping: given.indexer_k)
    for row in try masses(at, count) {
      found.at.append(
        CapturedMass(
          k: Int(clamping: row.k), oracle: row.oracle, indexer: row.indexer, recency: row.recency, random: row.random,
          recall: row.recall))
    }
    try copyText(found.json(mass: given.mass).utf8, text, capacity, needed)
  }
}
