import TamisFormats
import TamisMeter
import TamisRuntime
import Testing

private func record(label: String = "acme", basis: Basis? = .calibrated, microjoules: UInt64? = 2_500_000) throws
  -> Record
{
  var sample = Sample()
  sample.calls = 3
  sample.queries = 12
  sample.keysScored = 4000
  sample.keysSelected = 64
  sample.keysAttended = 64
  sample.keysDense = 4000
  sample.keysExpanded = 1500
  sample.flops = 1_234_567
  sample.bytes = 89
  sample.wallNanoseconds = 1_500_000_001
  sample.cpuNanoseconds = 2_000_000_000
  sample.denseFlops = 9_999_999
  sample.denseBytes = 77
  var cost = Cost(sample)
  cost.inputTokens = 10_000
  cost.cachedTokens = 9_000
  cost.outputTokens = 500
  if let basis { cost.setDenseTime(nanoseconds: 3_000_000_000, basis: basis) }
  if let microjoules { cost.setEnergy(microjoules: microjoules) }
  let machine = try MachinePrice(name: "box", perHour: Money(Decimal(Int64(36)), try Currency("EUR")))
  return Record(
    label: label, model: "DeepSeek-V3.2", cost: cost,
    bills: [try PriceList.deepSeekV32().bill(cost.usage()), try machine.bill(nanoseconds: cost.nanoseconds)],
    timeUnixNanoseconds: 1_700_000_000_000_000_001)
}

private func text(_ write: (inout BoundedText) throws -> Void) throws -> String {
  var out = BoundedText()
  try write(&out)
  return out.text
}

private func parse(_ text: String) throws -> JSONDocument {
  var copy = text
  return try copy.withUTF8 { try JSONDocument(copying: UnsafeRawBufferPointer($0), name: "export") }
}

@Suite struct ExportTests {
  @Test func jsonLine() throws {
    let line = try text { try record().writeJSONLine(to: &$0) }
    #expect(line.hasSuffix("}\n"))
    #expect(line.utf8.filter { $0 == 10 }.count == 1)
    let root = try parse(line).root
    #expect(try root.required("label").string() == "acme")
    #expect(try root.required("time_unix_nano").integer() == 1_700_000_000_000_000_001)
    #expect(try root.required("keys_avoided").integer() == 3936)
    #expect(try root.required("keys_expanded").integer() == 1500)
    #expect(try root.required("seconds").numberText() == "1.500000001")
    #expect(try root.required("joules").numberText() == "2.5")
    #expect(try root.required("dense_seconds").numberText() == "3")
    #expect(try root.required("basis").string() == "calibrated")
    let bills = try root.required("bills").elements.map {
      try $0.required("amount").string() + $0.required("currency").string()
    }
    #expect(bills == ["0.000742USD", "0.01500000001EUR"])
  }

  @Test func whatWasNotMeasuredIsNull() throws {
    let root = try parse(try text { try record(basis: nil, microjoules: nil).writeJSONLine(to: &$0) }).root
    let missing = root.members.filter { $0.value.isNull }.compactMap { try? $0.key.string() }
    #expect(missing == ["joules", "dense_seconds", "basis"])
    let attributes = try text { try record(basis: nil, microjoules: nil).writeOpenTelemetry(to: &$0) }
    #expect(!attributes.contains("joules") && !attributes.contains("null"))
  }

  @Test(arguments: ["quote \" back \\ slash", "line\nfeed\r\ttab", "\u{0}\u{1f}\u{7f}", "naïve 🥐", "a,b", ""])
  func labelsAreEscaped(_ label: String) throws {
    let root = try parse(try text { try record(label: label).writeJSONLine(to: &$0) }).root
    #expect(try root.required("label").string() == label)
    let attributes = try parse(try text { try record(label: label).writeOpenTelemetry(to: &$0) }).root
    #expect(try attributes.required("tamis.label").string() == label)
  }

  @Test func openTelemetryNames() throws {
    let root = try parse(try text { try record().writeOpenTelemetry(to: &$0) }).root
    #expect(try root.required("gen_ai.usage.input_tokens").integer() == 10_000)
    #expect(try root.required("gen_ai.usage.cache_read.input_tokens").integer() == 9_000)
    #expect(try root.required("gen_ai.usage.output_tokens").integer() == 500)
    #expect(try root.required("gen_ai.usage.cost.amount").numberText() == "0.000742")
    #expect(try root.required("gen_ai.usage.cost.currency").string() == "USD")
    #expect(try root.required("gen_ai.usage.cost.source").string() == "list")
    #expect(try root.required("tamis.keys_scored").integer() == 4000)
    #expect(root.members.allSatisfy { $0.value.isNumber || $0.value.isString })
  }

  @Test func usageDictionaries() throws {
    let openAI = try text { try record().writeOpenAIUsage(to: &$0) }
    #expect(
      openAI
        == #"{"prompt_tokens":10000,"completion_tokens":500,"total_tokens":10500,"prompt_tokens_details":{"cached_tokens":9000}}"#
    )
    let langChain = try text { try record().writeLangChainUsage(to: &$0) }
    #expect(
      langChain
        == #"{"input_tokens":10000,"output_tokens":500,"total_tokens":10500,"input_token_details":{"cache_read":9000,"cache_creation":0}}"#
    )
  }

  @Test func prometheus() throws {
    let page = try text {
      try Record.writePrometheus([record(), record(label: "b\"\\\n", basis: nil, microjoules: nil)], to: &$0)
    }
    let lines = page.split(separator: "\n", omittingEmptySubsequences: false)
    #expect(lines.last == "")
    #expect(lines.filter { $0 == "# TYPE tamis_keys_scored_total counter" }.count == 1)
    #expect(lines.contains(#"tamis_keys_scored_total{meter="acme",model="DeepSeek-V3.2"} 4000"#))
    #expect(lines.contains(#"tamis_keys_scored_total{meter="b\"\\\n",model="DeepSeek-V3.2"} 4000"#))
    #expect(lines.contains(#"tamis_dense_seconds_total{meter="acme",model="DeepSeek-V3.2",basis="calibrated"} 3"#))
    #expect(
      lines.contains(#"tamis_cost_total{meter="acme",model="DeepSeek-V3.2",currency="USD",source="list"} 0.000742"#))
    #expect(lines.filter { $0.hasPrefix("tamis_joules_total") }.count == 1)
    let names = lines.filter { $0.hasPrefix("# TYPE") }
    #expect(Set(names).count == names.count)
  }

  @Test func csv() throws {
    let page = try text {
      try Record.writeCSVHeader(to: &$0)
      try record(label: "a,\"b\"").writeCSVRow(to: &$0)
      try record(basis: nil, microjoules: nil).writeCSVRow(to: &$0)
    }
    let rows = page.split(separator: "\r\n").map(String.init)
    #expect(rows.count == 3)
    #expect(rows[0].hasPrefix("time_unix_nano,label,model,calls,queries,"))
    #expect(
      rows[1].hasPrefix(
        "1700000000000000001,\"a,\"\"b\"\"\",DeepSeek-V3.2,3,12,4000,64,64,4000,1500,10000,9000,0,0,500,1234567,89,1.500000001,2,2.5,"
      ))
    #expect(rows[1].hasSuffix(",3,calibrated,0.000742,USD,0.01500000001,EUR,,"))
    let fields = rows[0].split(separator: ",", omittingEmptySubsequences: false).count
    #expect(rows[2].split(separator: ",", omittingEmptySubsequences: false).count == fields)
  }

  @Test func textIsBounded() throws {
    var out = BoundedText(limit: 100)
    #expect(throws: TamisError.self) { try record().writeJSONLine(to: &out) }
    #expect(out.text.isEmpty)
  }
}

@Suite struct MachineFileTests {
  private func file(_ edit: (String) -> String = { $0 }) throws -> JSONDocument {
    try parse(edit(try text { try MachineProfile.h800().write(to: &$0) }))
  }

  @Test func savesAndLoads() throws {
    #expect(try MachineProfile(try file()) == MachineProfile.h800())
  }

  @Test(arguments: [
    ("tamis-machine-1", "tamis-machine-2"), ("\"analytic\"", "\"guess\""), ("\"analytic\"", "\"measured\""),
    ("1979000000000000.0", "-1"), ("\"amount\": \"2\"", "\"amount\": \"-2\""), ("\"USD\"", "\"???\""),
    ("\"sparse\"", "\"sparce\""),
    ("\"eight_bit\",", "\"four_bit\","), ("0.5734", "5734"), ("\"high\": 2.1", "\"high\": 0.5"),
    ("\"low\": 1.0", "\"low\": \"1\""),
  ])
  func refuses(_ old: String, _ new: String) throws {
    let changed = try file { text in
      let parts = splitting(text, old)
      #expect(parts.count > 1)
      return parts.joined(separator: new)
    }
    #expect(throws: TamisError.self) { try MachineProfile(changed) }
  }

  private func splitting(_ text: String, _ separator: String) -> [String] {
    text.split(separator: separator, omittingEmptySubsequences: false).map(String.init)
  }
}
