// A record in the forms other programs read: a JSON line, Prometheus text, OpenTelemetry attributes, the usage
// dictionaries of OpenAI and LangChain, CSV. What was not measured is left out or empty; nothing is filled in.

package import TamisRuntime

/// A read of a meter with what belongs beside it in a log.
package struct Record: Sendable {
  package var label: String
  package var model: String
  package var cost: Cost
  /// At most one from each source.
  package var bills: [Bill]
  /// Nanoseconds since 1970 when the record was made; 0: left out.
  package var timeUnixNanoseconds: UInt64

  package init(label: String, model: String, cost: Cost, bills: [Bill] = [], timeUnixNanoseconds: UInt64 = 0) {
    self.label = label
    self.model = model
    self.cost = cost
    self.bills = bills
    self.timeUnixNanoseconds = timeUnixNanoseconds
  }

  private func bill(_ source: PriceSource) -> Bill? { bills.first { $0.source == source } }
}

// MARK: The figures of a record, once, by name

/// The text of a number and what it says, in the order of all exports.
private struct Figure {
  let name: String
  let help: String
  /// nil: not measured.
  let value: String?
}

extension Cost {
  fileprivate var figures: [Figure] {
    counts + [
      Figure(
        name: "flops",
        help: "Floating-point and integer operations of the definition; multiply and add count separately.",
        value: "\(flops)"),
      Figure(
        name: "bytes", help: "Bytes of keys, values, queries and results that the definition touches.",
        value: "\(bytes)"),
      Figure(name: "seconds", help: "Wall time of the calls, added up.", value: seconds(nanoseconds)),
      Figure(name: "cpu_seconds", help: "Processor time over all threads.", value: seconds(cpuNanoseconds)),
      Figure(
        name: "joules", help: "Energy of the processor packages while it was read.",
        value: microjoules.flatMap { decimal($0, places: 6) }),
      Figure(
        name: "dense_flops", help: "Operations a dense attention would have needed for the same calls.",
        value: "\(denseFlops)"),
      Figure(
        name: "dense_bytes", help: "Bytes a dense attention would have touched for the same calls.",
        value: "\(denseBytes)"),
      Figure(
        name: "dense_seconds", help: "Time a dense attention would have taken; the basis is a label.",
        value: denseNanoseconds.flatMap { seconds($0) }),
    ]
  }

  private var counts: [Figure] {
    [
      Figure(name: "calls", help: "Successful calls.", value: "\(calls)"),
      Figure(name: "queries", help: "Query rows.", value: "\(queries)"),
      Figure(name: "keys_scored", help: "Query-key pairs the indexer scored.", value: "\(keysScored)"),
      Figure(name: "keys_selected", help: "Query-key pairs selected for attention.", value: "\(keysSelected)"),
      Figure(name: "keys_attended", help: "Query-key pairs attention compared.", value: "\(keysAttended)"),
      Figure(name: "keys_dense", help: "Query-key pairs a dense attention would have compared.", value: "\(keysDense)"),
      Figure(
        name: "keys_expanded", help: "Of those, pairs that the expanded form of attention computed, masked ones included.",
        value: "\(keysExpanded)"),
      Figure(name: "input_tokens", help: "Input tokens, cached ones included.", value: "\(inputTokens)"),
      Figure(name: "cached_tokens", help: "Input tokens that were read from a cache.", value: "\(cachedTokens)"),
      Figure(name: "cache_write_tokens", help: "Input tokens that were written to a cache.", value: "\(cacheWriteTokens)"),
      Figure(
        name: "cache_token_seconds", help: "Tokens times seconds that a cache kept them.",
        value: "\(cacheTokenSeconds)"),
      Figure(name: "output_tokens", help: "Output tokens.", value: "\(outputTokens)"),
    ]
  }

  private func seconds(_ nanoseconds: UInt64) -> String? { decimal(nanoseconds, places: 9) }

  private func decimal(_ value: UInt64, places: Int) -> String? {
    try? Decimal(Int128(value), places: places).description
  }

  fileprivate var totalTokens: UInt128 { UInt128(inputTokens) &+ UInt128(outputTokens) }
}

// MARK: JSON

/// An object written member by member; values are JSON text already.
private struct JSONObject {
  private var members: [String] = []

  mutating func add(_ key: String, _ value: String?) {
    if let value { members.append(BoundedText.json(key) + ":" + value) }
  }

  var text: String { "{" + members.joined(separator: ",") + "}" }
}

extension Record {
  /// One line with its line feed. Amounts of money are strings: many readers would round a number.
  package func writeJSONLine(to out: inout BoundedText) throws(TamisError) {
    var object = JSONObject()
    object.add("time_unix_nano", timeUnixNanoseconds == 0 ? nil : "\(timeUnixNanoseconds)")
    object.add("label", BoundedText.json(label))
    object.add("model", BoundedText.json(model))
    for figure in cost.figures { object.add(figure.name, figure.value ?? "null") }
    object.add("keys_avoided", "\(cost.keysAvoided)")
    object.add("basis", cost.basis.map { BoundedText.json($0.name) } ?? "null")
    object.add("bills", "[" + bills.map(Record.json).joined(separator: ",") + "]")
    try out.append(object.text + "\n")
  }

  private static func json(_ bill: Bill) -> String {
    var object = JSONObject()
    object.add("amount", BoundedText.json(bill.money.amount.description))
    object.add("currency", BoundedText.json(bill.money.currency.description))
    object.add("source", BoundedText.json(bill.source.rawValue))
    object.add("name", BoundedText.json(bill.name))
    object.add("date", BoundedText.json(bill.date))
    return object.text
  }

  /// A flat object of span attributes: the semantic conventions' `gen_ai.usage.*` (input tokens include cached ones),
  /// the proposed `gen_ai.usage.cost.*`, and the counts no convention has under `tamis.*`.
  package func writeOpenTelemetry(to out: inout BoundedText) throws(TamisError) {
    var object = JSONObject()
    object.add("gen_ai.request.model", BoundedText.json(model))
    object.add("gen_ai.usage.input_tokens", "\(cost.inputTokens)")
    object.add("gen_ai.usage.output_tokens", "\(cost.outputTokens)")
    object.add("gen_ai.usage.cache_read.input_tokens", "\(cost.cachedTokens)")
    object.add("gen_ai.usage.cache_creation.input_tokens", "\(cost.cacheWriteTokens)")
    if let bill = bills.first {
      object.add("gen_ai.usage.cost.amount", bill.money.amount.description)
      object.add("gen_ai.usage.cost.currency", BoundedText.json(bill.money.currency.description))
      object.add("gen_ai.usage.cost.source", BoundedText.json(bill.source.rawValue))
    }
    for figure in cost.figures where !Record.conventional.contains(figure.name) {
      object.add("tamis." + figure.name, figure.value)
    }
    object.add("tamis.label", BoundedText.json(label))
    object.add("tamis.basis", cost.basis.map { BoundedText.json($0.name) })
    try out.append(object.text)
  }

  /// Figures that OpenTelemetry has names of its own for.
  private static let conventional: Set<String> = [
    "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens",
  ]

  /// The `usage` object of OpenAI's chat completions.
  package func writeOpenAIUsage(to out: inout BoundedText) throws(TamisError) {
    var details = JSONObject()
    details.add("cached_tokens", "\(cost.cachedTokens)")
    var object = JSONObject()
    object.add("prompt_tokens", "\(cost.inputTokens)")
    object.add("completion_tokens", "\(cost.outputTokens)")
    object.add("total_tokens", "\(cost.totalTokens)")
    object.add("prompt_tokens_details", details.text)
    try out.append(object.text)
  }

  /// LangChain's `usage_metadata`.
  package func writeLangChainUsage(to out: inout BoundedText) throws(TamisError) {
    var details = JSONObject()
    details.add("cache_read", "\(cost.cachedTokens)")
    details.add("cache_creation", "\(cost.cacheWriteTokens)")
    var object = JSONObject()
    object.add("input_tokens", "\(cost.inputTokens)")
    object.add("output_tokens", "\(cost.outputTokens)")
    object.add("total_tokens", "\(cost.totalTokens)")
    object.add("input_token_details", details.text)
    try out.append(object.text)
  }
}

// MARK: Prometheus and CSV

extension Record {
  /// The text format 0.0.4; each metric once, with a sample for each record.
  package static func writePrometheus(_ records: [Record], to out: inout BoundedText) throws(TamisError) {
    let rows = records.map { ($0, $0.cost.figures) }
    for (index, figure) in Cost().figures.enumerated() {
      var samples = ""
      for (record, figures) in rows {
        guard let value = figures.dropFirst(index).first?.value else { continue }
        let basis = figure.name == "dense_seconds" ? record.cost.basis : nil
        samples += "tamis_\(figure.name)_total{\(record.labels(basis))} \(value)\n"
      }
      try Record.writeMetric("tamis_\(figure.name)_total", figure.help, samples, to: &out)
    }
    try writeBills(records, to: &out)
  }

  private static func writeBills(_ records: [Record], to out: inout BoundedText) throws(TamisError) {
    var samples = ""
    for record in records {
      for bill in record.bills {
        let labels = record.labels(nil) + ",currency=\"\(bill.money.currency)\",source=\"\(bill.source.rawValue)\""
        samples += "tamis_cost_total{\(labels)} \(bill.money.amount)\n"
      }
    }
    try writeMetric("tamis_cost_total", "Money by source.", samples, to: &out)
  }

  private static func writeMetric(
    _ name: String, _ help: String, _ samples: String, to out: inout BoundedText
  ) throws(TamisError) {
    guard !samples.isEmpty else { return }
    try out.append("# HELP \(name) \(help)\n# TYPE \(name) counter\n" + samples)
  }

  private func labels(_ basis: Basis?) -> String {
    let meter = "meter=\(BoundedText.prometheus(label)),model=\(BoundedText.prometheus(model))"
    return basis.map { meter + ",basis=\"\($0.name)\"" } ?? meter
  }

  package static func writeCSVHeader(to out: inout BoundedText) throws(TamisError) {
    let names = Cost().figures.map(\.name).joined(separator: ",")
    try out.append(
      "time_unix_nano,label,model,\(names),basis,list_amount,list_currency,machine_amount,machine_currency,"
        + "energy_amount,energy_currency\r\n")
  }

  package func writeCSVRow(to out: inout BoundedText) throws(TamisError) {
    let time = timeUnixNanoseconds == 0 ? "" : "\(timeUnixNanoseconds)"
    var fields = [time, BoundedText.csv(label), BoundedText.csv(model)]
    fields += cost.figures.map { $0.value ?? "" }
    fields.append(cost.basis?.name ?? "")
    for source in [PriceSource.list, .machine, .energy] {
      let money = bill(source)?.money
      fields += [money?.amount.description ?? "", money?.currency.description ?? ""]
    }
    try out.append(fields.joined(separator: ",") + "\r\n")
  }
}
