// A machine profile as a small JSON file: what one run measured, the next one loads. Reading refuses what a profile
// may not say, as well as a file of another kind; unknown members are ignored.

package import TamisFormats
package import TamisRuntime

extension MachineProfile {
  private static let format = "tamis-machine-1"

  package func write(to out: inout BoundedText) throws(TamisError) {
    try out.append("{\n  \"format\": \(BoundedText.json(MachineProfile.format)),\n")
    try out.append("  \"name\": \(BoundedText.json(name)),\n  \"source\": \(BoundedText.json(source)),\n")
    try out.append("  \"date\": \(BoundedText.json(date)),\n  \"basis\": \(BoundedText.json(basis.name)),\n")
    let rates = Precision.allCases.map { "\(BoundedText.json($0.rawValue)): \(peaks[$0])" }.joined(separator: ", ")
    try out.append("  \"peak_flops_per_second\": {\(rates)},\n")
    try out.append("  \"memory_bytes_per_second\": \(memoryBytesPerSecond),\n")
    try out.append("  \"prefill\": \(MachineProfile.json(prefill)),\n  \"decode\": \(MachineProfile.json(decode)),\n")
    if let pricePerHour {
      let amount = BoundedText.json(pricePerHour.amount.description)
      let currency = BoundedText.json(pricePerHour.currency.description)
      try out.append("  \"price_per_hour\": {\"amount\": \(amount), \"currency\": \(currency)},\n")
    }
    try out.append("  \"trust\": {\"low\": \(trust.low), \"high\": \(trust.high), \"ratio\": \(trust.ratio), ")
    try out.append("\"note\": \(BoundedText.json(trust.note))}\n}\n")
  }

  private static func json(_ phase: Phase) -> String {
    let masked = phase.masked.map { json($0) } ?? "null"
    let expanded = phase.expanded.map { json($0) } ?? "null"
    return """
      {
          "linear": \(json(phase.linear)),
          "indexer": \(json(phase.indexer)),
          "dense": \(json(phase.dense)),
          "masked": \(masked),
          "sparse": \(json(phase.sparse)),
          "expanded": \(expanded),
          "linear_bytes_per_second": \(phase.linearBytesPerSecond),
          "seconds_per_matrix": \(phase.secondsPerMatrix),
          "overhead_seconds": \(phase.overhead),
          "overhead_seconds_per_layer": \(phase.overheadPerLayer),
          "sparse_overhead_seconds_per_layer": \(phase.sparseOverheadPerLayer),
          "expanded_overhead_seconds_per_layer": \(phase.expandedOverheadPerLayer)
        }
      """
  }

  private static func json(_ rate: Rate) -> String {
    "{\"precision\": \(BoundedText.json(rate.precision.rawValue)), \"efficiency\": \(rate.efficiency)}"
  }

  package init(_ file: JSONDocument) throws(TamisError) {
    let root = file.root
    guard try root.required("format").string() == MachineProfile.format else {
      throw root.failure("a machine profile of format \(MachineProfile.format)")
    }
    let peaks = try root.required("peak_flops_per_second")
    let trust = try root.required("trust")
    try self.init(
      name: root.required("name").string(), source: root.required("source").string(),
      date: root.required("date").string(),
      basis: MachineProfile.basis(root.required("basis")),
      peaks: Peaks(
        eightBit: peaks.required("eight_bit").double(), sixteenBit: peaks.required("sixteen_bit").double(),
        float32: peaks.required("float32").double()),
      memoryBytesPerSecond: root.required("memory_bytes_per_second").double(),
      prefill: MachineProfile.phase(root.required("prefill")), decode: MachineProfile.phase(root.required("decode")),
      pricePerHour: MachineProfile.money(root.member("price_per_hour")),
      trust: Trust(
        low: trust.required("low").double(), high: trust.required("high").double(),
        ratio: trust.required("ratio").double(),
        note: trust.required("note").string()))
  }

  private static func phase(_ value: JSONValue) throws(TamisError) -> Phase {
    let masked = value.member("masked")
    // Profiles of before these were measured do not have them.
    let expanded = value.member("expanded")
    return Phase(
      linear: try rate(value.required("linear")), indexer: try rate(value.required("indexer")),
      dense: try rate(value.required("dense")), masked: masked == nil ? nil : try rate(value.required("masked")),
      sparse: try rate(value.required("sparse")),
      expanded: expanded == nil ? nil : try rate(value.required("expanded")),
      linearBytesPerSecond: try value.member("linear_bytes_per_second")?.double() ?? 0,
      secondsPerMatrix: try value.member("seconds_per_matrix")?.double() ?? 0, overhead: try value.required("overhead_seconds").double(),
      overheadPerLayer: try value.required("overhead_seconds_per_layer").double(),
      sparseOverheadPerLayer: try value.required("sparse_overhead_seconds_per_layer").double(),
      expandedOverheadPerLayer: try value.member("expanded_overhead_seconds_per_layer")?.double() ?? 0)
  }

  private static func rate(_ value: JSONValue) throws(TamisError) -> Rate {
    let precision = try value.required("precision")
    guard let known = Precision(rawValue: try precision.string()) else {
      throw precision.failure("a precision: eight_bit, sixteen_bit or float32")
    }
    return Rate(known, try value.required("efficiency").double())
  }

  private static func basis(_ value: JSONValue) throws(TamisError) -> Basis {
    let name = try value.string()
    guard let basis = Basis.allCases.first(where: { $0.name == name }) else {
      throw value.failure("a basis: calibrated or analytic")
    }
    return basis
  }

  private static func money(_ value: JSONValue?) throws(TamisError) -> Money? {
    guard let value else { return nil }
    let amount = try Decimal(parsing: value.required("amount").string())
    return Money(amount, try Currency(value.required("currency").string()))
  }
}
