import TamisFormats
import TamisMeter
import TamisRuntime
import Testing

private func json(_ text: String) throws -> JSONDocument {
  var copy = text
  return try copy.withUTF8 { try JSONDocument(copying: UnsafeRawBufferPointer($0), name: "prices.json") }
}

@Suite struct PriceTests {
  /// 1,000 × 0.28 + 9,000 × 0.028 + 500 × 0.42 millionths: cached tokens are part of the input, billed once.
  @Test func cachedTokensAreIncludedInInput() throws {
    let bill = try PriceList.deepSeekV32().bill(try Usage(input: 10_000, cached: 9_000, output: 500))
    #expect(bill.money == Money(try Decimal(parsing: "0.000742"), .usd))
    #expect(bill.money.description == "0.000742 USD")
    #expect(bill.source == .list)
    #expect(bill.date == "2025-09-29")
  }

  @Test func refusesUsageThatCannotBe() throws {
    #expect(throws: TamisError.self) { try Usage(input: 10, cached: 11, output: 0) }
    #expect(throws: TamisError.self) { try Usage(input: 10, cached: 6, cacheWrite: 5, output: 0) }
    #expect(throws: TamisError.self) { try Usage(input: 10, cached: .max, cacheWrite: 2, output: 0) }
    #expect(throws: TamisError.self) { try Usage(input: 10, output: 0, cacheTokenHours: try Decimal(parsing: "-1")) }
  }

  @Test func tiersBillTheWholeRequest() throws {
    let one = Decimal(Int64(1))
    let two = Decimal(Int64(2))
    let list = try PriceList(
      name: "t", currency: try Currency("EUR"), source: "", date: "",
      tiers: [
        .init(above: 0, rates: try TokenRates(input: one, output: one)),
        .init(above: 100, rates: try TokenRates(input: two, output: two)),
      ], cacheStoragePerTokenHour: try Decimal(parsing: "0.001"))
    #expect(try list.bill(try Usage(input: 100, output: 1)).money.description == "101 EUR")
    #expect(try list.bill(try Usage(input: 101, output: 1)).money.description == "204 EUR")
    let stored = try Usage(input: 0, output: 0, cacheTokenHours: try Decimal(parsing: "2500.5"))
    #expect(try list.bill(stored).money.description == "2.5005 EUR")
  }

  @Test func refusesAbsurdPrices() throws {
    let one = Decimal(Int64(1))
    #expect(throws: TamisError.self) { try TokenRates(input: try Decimal(parsing: "-1e-9"), output: one) }
    #expect(throws: TamisError.self) { try TokenRates(input: one, output: try Decimal(parsing: "1000.1")) }
    let rates = try TokenRates(input: one, output: one)
    #expect(throws: TamisError.self) { try PriceList(name: "", currency: .usd, source: "", date: "", tiers: []) }
    #expect(throws: TamisError.self) {
      try PriceList(name: "", currency: .usd, source: "", date: "", tiers: [.init(above: 5, rates: rates)])
    }
    #expect(throws: TamisError.self) {
      try PriceList(
        name: "", currency: .usd, source: "", date: "",
        tiers: [.init(above: 0, rates: rates), .init(above: 9, rates: rates), .init(above: 9, rates: rates)])
    }
    #expect(throws: TamisError.self) { try MachinePrice(name: "", perHour: Money(try Decimal(parsing: "-2"), .usd)) }
    #expect(throws: TamisError.self) { try MachinePrice(name: "", perHour: Money(one, .usd), busyShare: .zero) }
    #expect(throws: TamisError.self) {
      try MachinePrice(name: "", perHour: Money(one, .usd), busyShare: try Decimal(parsing: "1.1"))
    }
    #expect(throws: TamisError.self) {
      try EnergyPrice(name: "", perKilowattHour: Money(try Decimal(parsing: "-2"), .usd))
    }
  }

  @Test func overflowIsRefused() throws {
    let list = try PriceList(
      name: "", currency: .usd, source: "", date: "",
      tiers: [
        .init(
          above: 0, rates: try TokenRates(input: try Decimal(parsing: "999.99999999999999999999999999"), output: .zero))
      ])
    #expect(throws: TamisError.self) { try list.bill(try Usage(input: .max, output: 0)) }
  }

  @Test func machineHoursTimesBusyShare() throws {
    let price = try MachinePrice(
      name: "m", perHour: Money(Decimal(Int64(2)), .usd), busyShare: try Decimal(parsing: "0.25"))
    #expect(try price.bill(nanoseconds: 3_600_000_000_000).money.description == "0.5 USD")
    #expect(try price.bill(nanoseconds: 1).money.description == "0.000000000000139 USD")
    #expect(try price.bill(nanoseconds: 1).source == .machine)
    #expect(try price.bill(seconds: 7200).money.description == "1 USD")
  }

  @Test func energyByTheKilowattHour() throws {
    let price = try EnergyPrice(name: "grid", perKilowattHour: Money(try Decimal(parsing: "0.31"), try Currency("EUR")))
    #expect(try price.bill(microjoules: 3_600_000_000_000).money.description == "0.31 EUR")
    #expect(try price.bill(microjoules: 1_800_000_000_000).money.description == "0.155 EUR")
  }
}

@Suite struct LitellmTests {
  static let file = """
    {"sample_spec": {"input_cost_per_token": 0.0, "mode": "one of: chat"},
     "lab/plain": {"input_cost_per_token": 2.8e-07, "cache_read_input_token_cost": 2.8e-08,
       "output_cost_per_token": 4.2e-07, "source": "https://prices.example/x", "max_tokens": 8192,
       "input_cost_per_token_batches": 1e-08, "cache_creation_input_token_cost_above_1hr": 9},
     "lab/tiers": {"input_cost_per_token": 1.25e-06, "output_cost_per_token": 1e-05,
       "input_cost_per_token_above_200k_tokens": 2.5e-06, "output_cost_per_token_above_200k_tokens": 1.5e-05,
       "cache_read_input_token_cost": 1.25e-07, "output_cost_per_token_above_200k_tokens_batches": 9},
     "lab/table": {"tiered_pricing": [
       {"range": [0, 32000.0], "input_cost_per_token": 3e-07, "output_cost_per_token": 1.5e-06, "cache_read_input_token_cost": 8e-08},
       {"range": [32000.0, 128000.0], "input_cost_per_token": 5e-07, "output_cost_per_token": 2.5e-06}]},
     "lab/image": {"output_cost_per_image": 0.04},
     "lab/negative": {"input_cost_per_token": -1e-07, "output_cost_per_token": 1e-07},
     "lab/text": {"input_cost_per_token": "1e-07", "output_cost_per_token": 1e-07},
     "lab/number": 3}
    """

  private func list(_ model: String) throws -> PriceList {
    try PriceList(litellm: try json(LitellmTests.file), model: model, date: "2026-11-20")
  }

  @Test func plainEntry() throws {
    let list = try list("lab/plain")
    #expect(list.tiers.count == 1)
    #expect(list.source == "https://prices.example/x")
    let bill = try list.bill(try Usage(input: 10_000, cached: 9_000, output: 500))
    #expect(bill.money.description == "0.000742 USD")
    #expect(bill.date == "2026-11-20")
  }

  @Test func tiersByInputLength() throws {
    let list = try list("lab/tiers")
    #expect(try list.bill(try Usage(input: 200_000, output: 0)).money.description == "0.25 USD")
    #expect(try list.bill(try Usage(input: 200_001, output: 1)).money.description == "0.5000175 USD")
    #expect(try list.bill(try Usage(input: 200_001, cached: 200_001, output: 0)).money.description == "0.025000125 USD")
  }

  @Test func tableOfTiers() throws {
    let list = try list("lab/table")
    #expect(try list.bill(try Usage(input: 10_000, cached: 10_000, output: 0)).money.description == "0.0008 USD")
    #expect(try list.bill(try Usage(input: 100_000, cached: 100_000, output: 0)).money.description == "0.05 USD")
  }

  @Test(arguments: ["lab/absent", "lab/image", "lab/negative", "lab/text", "lab/number", "sample_spec"])
  func refuses(_ model: String) {
    #expect(throws: TamisError.self) { try list(model) }
  }

  @Test(arguments: [
    "[]", "3", "{\"m\": {\"tiered_pricing\": [{}]}}", "{\"m\": {\"tiered_pricing\": [{\"range\": [0.5]}]}}",
  ])
  func refusesMalformedFiles(_ text: String) {
    #expect(throws: TamisError.self) { try PriceList(litellm: try json(text), model: "m", date: "") }
  }
}
