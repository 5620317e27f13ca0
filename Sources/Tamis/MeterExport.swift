// Section 7.4 of the header: exports of meters into the caller's text.

public import CTamis
import TamisMeter
import TamisRuntime

@_cdecl("tamis_meter_export") @implementation
public func tamis_meter_export(
  _ meters: UnsafePointer<OpaquePointer?>?, _ count: Int, _ format: Int32,
  _ options: UnsafePointer<tamis_export_options>?, _ text: UnsafeMutablePointer<CChar>?, _ capacity: Int,
  _ needed: UnsafeMutablePointer<Int>?
) -> tamis_status {
  boundary("tamis_meter_export") { () throws(TamisError) in
    let given = try Tamis.options(options, defaults: tamis_export_options())
    var out = BoundedText(limit: 16 << 20)
    try write(records(meters, count, given), format, header: given.no_header == 0, to: &out)
    try copyText(out.text.utf8, text, capacity, needed)
  }
}

private func records(
  _ meters: UnsafePointer<OpaquePointer?>?, _ count: Int, _ given: tamis_export_options
) throws(TamisError) -> [Record] {
  guard let meters else { throw TamisError(.argument, "meters is NULL") }
  guard UInt(bitPattern: meters) % UInt(MemoryLayout<OpaquePointer>.alignment) == 0 else {
    throw TamisError(.argument, "meters is not aligned to \(MemoryLayout<OpaquePointer>.alignment) bytes")
  }
  guard count >= 1, count <= 1 << 16 else {
    throw TamisError(.argument, "count is \(UInt(bitPattern: count)), expected 1 to 65536")
  }
  let model = try text(given.model, "model") ?? ""
  let prices = try given.prices.map { handle throws(TamisError) in try priceSet(handle) } ?? PriceSet()
  var records: [Record] = []
  for i in 0..<count {
    let found: Meter = try object(meters[i], "meters[i]")
    let cost = found.read()
    records.append(
      Record(
        label: found.label, model: model, cost: cost, bills: try prices.bills(cost),
        timeUnixNanoseconds: given.time_unix_nanoseconds))
  }
  return records
}

private func write(
  _ records: [Record], _ format: Int32, header: Bool, to out: inout BoundedText
) throws(TamisError) {
  switch Int(format) {
  case TAMIS_EXPORT_JSON: for record in records { try record.writeJSONLine(to: &out) }
  case TAMIS_EXPORT_PROMETHEUS: try Record.writePrometheus(records, to: &out)
  case TAMIS_EXPORT_OPENTELEMETRY: try single(records).writeOpenTelemetry(to: &out)
  case TAMIS_EXPORT_OPENAI: try single(records).writeOpenAIUsage(to: &out)
  case TAMIS_EXPORT_LANGCHAIN: try single(records).writeLangChainUsage(to: &out)
  case TAMIS_EXPORT_CSV:
    if header { try Record.writeCSVHeader(to: &out) }
    for record in records { try record.writeCSVRow(to: &out) }
  default: throw TamisError(.argument, "format: \(format) is no TAMIS_EXPORT_ value")
  }
}

/// The object of one meter.
private func single(_ records: [Record]) throws(TamisError) -> Record {
  guard let record = records.first, records.count == 1 else {
    throw TamisError(.argument, "count is \(records.count), expected 1 in this format")
  }
  return record
}
