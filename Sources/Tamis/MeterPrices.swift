// Section 7.3 of the header: prices, costs and bills.

public import CTamis
import TamisFormats
import TamisMeter
import TamisRuntime

/// What a tamis_prices handle stands for: up to three kinds of prices.
struct PriceSet: Sendable {
  var list: PriceList?
  var machine: MachinePrice?
  var energy: EnergyPrice?

  /// The bills of every kind that this cost has.
  func bills(_ cost: Cost) throws(TamisError) -> [Bill] {
    var bills: [Bill] = []
    if let list { bills.append(try list.bill(cost.usage())) }
    if let machine { bills.append(try machine.bill(nanoseconds: cost.nanoseconds)) }
    if let energy, let bill = try cost.bill(energy) { bills.append(bill) }
    return bills
  }
}

@_cdecl("tamis_prices_create") @implementation
public func tamis_prices_create(
  _ options: UnsafePointer<tamis_prices_options>?, _ prices: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_prices_create") { () throws(TamisError) in
    let prices = try required(prices, "prices")
    let given = try PriceReader(Tamis.options(options, defaults: tamis_prices_options()))
    prices.pointee = handle(Box(try given.prices()))
  }
}

@_cdecl("tamis_prices_free") @implementation
public func tamis_prices_free(_ prices: OpaquePointer?) { drop(prices, Box<PriceSet>.self) }

func priceSet(_ prices: OpaquePointer?) throws(TamisError) -> PriceSet {
  let box: Box<PriceSet> = try object(prices, "prices")
  return box.value
}

// MARK: Reading the options

private struct PriceReader {
  private let given: tamis_prices_options
  private let currency: Currency

  init(_ given: tamis_prices_options) throws(TamisError) {
    self.given = given
    currency = try Currency(text(given.currency, "currency") ?? "USD")
  }

  func prices() throws(TamisError) -> PriceSet {
    let name = try text(given.name, "name") ?? ""
    let date = try text(given.date, "date") ?? ""
    var set = PriceSet()
    set.list = given.litellm == nil ? try list(name, date) : try litellm(date)
    let share = try decimal(given.busy_share, "busy_share")
    set.machine = try decimal(given.machine_hour, "machine_hour").map { price throws(TamisError) in
      try MachinePrice(
        name: name, perHour: Money(price, currency), busyShare: share ?? Decimal(Int64(1)), date: date)
    }
    guard share == nil || set.machine != nil else {
      throw TamisError(.argument, "options: busy_share without machine_hour")
    }
    set.energy = try decimal(given.kilowatt_hour, "kilowatt_hour").map { price throws(TamisError) in
      try EnergyPrice(name: name, perKilowattHour: Money(price, currency), date: date)
    }
    if set.list == nil, set.machine == nil, set.energy == nil { set.list = try PriceList.deepSeekV32() }
    return set
  }

  private func list(_ name: String, _ date: String) throws(TamisError) -> PriceList? {
    guard given.model == nil, given.litellm_bytes == 0 else {
      throw TamisError(.argument, "options: model and litellm_bytes without litellm")
    }
    guard given.input != nil || given.output != nil else {
      guard given.cached == nil, given.cache_write == nil, given.cache_storage == nil, given.tiers == 0 else {
        throw TamisError(.argument, "options: a price list without input and output")
      }
      return nil
    }
    var tiers = [
      PriceList.Tier(above: 0, rates: try rates(given.input, given.cached, given.cache_write, given.output))
    ]
    guard given.tiers <= 63, given.tiers == 0 || given.tier != nil else {
      throw TamisError(.argument, "options: \(given.tiers) tiers, expected at most 63 and their array")
    }
    for i in 0..<Int(given.tiers) {
      guard let tier = given.tier?[i] else { break }
      tiers.append(
        PriceList.Tier(above: tier.above, rates: try rates(tier.input, tier.cached, tier.cache_write, tier.output)))
    }
    let storage = try perToken(given.cache_storage, "cache_storage") ?? .zero
    return try PriceList(
      name: name, currency: currency, source: text(given.source, "source") ?? "", date: date, tiers: tiers,
      cacheStoragePerTokenHour: storage)
  }

  private func litellm(_ date: String) throws(TamisError) -> PriceList {
    let own = [given.input, given.cached, given.cache_write, given.output, given.cache_storage]
    guard own.allSatisfy({ $0 == nil }), given.tiers == 0, currency == .usd else {
      throw TamisError(.argument, "options: litellm's prices are in USD and exclude a list of one's own")
    }
    guard let model = try text(given.model, "model") else { throw TamisError(.argument, "options: model is NULL") }
    return try PriceList(litellm: document(given.litellm, given.litellm_bytes, "litellm"), model: model, date: date)
  }

  private func rates(
    _ input: UnsafePointer<CChar>?, _ cached: UnsafePointer<CChar>?, _ write: UnsafePointer<CChar>?,
    _ output: UnsafePointer<CChar>?
  ) throws(TamisError) -> TokenRates {
    guard let input = try perToken(input, "input"), let output = try perToken(output, "output") else {
      throw TamisError(.argument, "options: a price list without input and output")
    }
    return try TokenRates(
      input: input, cached: perToken(cached, "cached"), cacheWrite: perToken(write, "cache_write"), output: output)
  }

  /// A price for a million tokens as one for a token.
  private func perToken(_ price: UnsafePointer<CChar>?, _ name: StaticString) throws(TamisError) -> Decimal? {
    try decimal(price, name)?.multiplied(by: Decimal(1, places: 6))
  }
}

func decimal(_ pointer: UnsafePointer<CChar>?, _ name: StaticString) throws(TamisError) -> Decimal? {
  guard let written = try text(pointer, name) else { return nil }
  do {
    return try Decimal(parsing: written)
  } catch {
    throw TamisError(error.status, "\(name): \(error.message)")
  }
}

// MARK: Costs and bills

/// The record that a cost of the caller stands for.
func cost(_ pointer: UnsafePointer<tamis_cost>?) throws(TamisError) -> Cost {
  guard pointer != nil else { throw TamisError(.argument, "cost is NULL") }
  let given = try Tamis.options(pointer, defaults: unmeasured(), "cost")
  var cost = Cost()
  cost.calls = given.calls
  cost.queries = given.queries
  cost.keysScored = given.keys_scored
  cost.keysSelected = given.keys_selected
  cost.keysAttended = given.keys_attended
  cost.keysDense = given.keys_dense
  cost.keysExpanded = given.keys_expanded
  cost.inputTokens = given.input_tokens
  cost.cachedTokens = given.cached_tokens
  cost.cacheWriteTokens = given.cache_write_tokens
  cost.cacheTokenSeconds = given.cache_token_seconds
  cost.outputTokens = given.output_tokens
  cost.flops = UInt128(given.flops)
  cost.bytes = UInt128(given.bytes)
  cost.nanoseconds = given.nanoseconds
  cost.cpuNanoseconds = given.cpu_nanoseconds
  cost.denseFlops = UInt128(given.dense_flops)
  cost.denseBytes = UInt128(given.dense_bytes)
  if given.basis == UInt32(TAMIS_BASIS_NONE) {
    guard given.dense_nanoseconds == 0 else {
      throw TamisError(.argument, "cost: dense_nanoseconds without a basis")
    }
    cost.setUntimed()
  } else {
    guard let basis = Basis(rawValue: given.basis) else {
      throw TamisError(.argument, "cost: basis \(given.basis) is no TAMIS_BASIS_ value")
    }
    cost.setDenseTime(nanoseconds: given.dense_nanoseconds, basis: basis)
  }
  guard given.microjoules >= -1 else { throw TamisError(.argument, "cost: microjoules is below -1") }
  if let microjoules = UInt64(exactly: given.microjoules) { cost.setEnergy(microjoules: microjoules) }
  _ = try cost.usage()
  return cost
}

/// TAMIS_COST_INIT, for callers whose struct ends before the energy.
private func unmeasured() -> tamis_cost {
  var cost = tamis_cost()
  cost.microjoules = -1
  return cost
}

/// The same record for the caller; 128-bit sums stop at 2^64-1.
func record(_ cost: Cost, size: Int) -> tamis_cost {
  tamis_cost(
    size: UInt32(truncatingIfNeeded: size), basis: cost.basis?.rawValue ?? UInt32(TAMIS_BASIS_NONE),
    calls: cost.calls, queries: cost.queries,
    keys_scored: cost.keysScored, keys_selected: cost.keysSelected, keys_attended: cost.keysAttended,
    keys_dense: cost.keysDense, input_tokens: cost.inputTokens, cached_tokens: cost.cachedTokens,
    cache_write_tokens: cost.cacheWriteTokens, cache_token_seconds: cost.cacheTokenSeconds,
    output_tokens: cost.outputTokens, flops: UInt64(clamping: cost.flops), bytes: UInt64(clamping: cost.bytes),
    nanoseconds: cost.nanoseconds, cpu_nanoseconds: cost.cpuNanoseconds, dense_flops: UInt64(clamping: cost.denseFlops),
    dense_bytes: UInt64(clamping: cost.denseBytes), dense_nanoseconds: cost.denseNanoseconds ?? 0,
    microjoules: cost.microjoules.map { Int64(clamping: $0) } ?? -1, keys_expanded: cost.keysExpanded)
}

@_cdecl("tamis_prices_bill") @implementation
public func tamis_prices_bill(
  _ prices: OpaquePointer?, _ kind: Int32, _ cost: UnsafePointer<tamis_cost>?, _ bill: UnsafeMutablePointer<tamis_bill>?
) -> tamis_status {
  boundary("tamis_prices_bill") { () throws(TamisError) in
    let prices = try priceSet(prices)
    let cost = try Tamis.cost(cost)
    let bill = try required(bill, "bill")
    let size = try callersSize(bill, "bill")
    guard let made = try Tamis.bill(prices, kind, cost) else {
      throw TamisError(.unsupported, "prices: none of that kind, or energy was not measured")
    }
    var filled = tamis_bill()
    filled.size = UInt32(truncatingIfNeeded: size)
    filled.kind = kind
    write(made.money.amount.description, to: &filled.amount)
    write(made.money.currency.description, to: &filled.currency)
    fill(bill, size, with: filled)
  }
}

private func bill(_ prices: PriceSet, _ kind: Int32, _ cost: Cost) throws(TamisError) -> Bill? {
  switch Int(kind) {
  case TAMIS_BILL_LIST:
    guard let list = prices.list else { return nil }
    return try list.bill(cost.usage())
  case TAMIS_BILL_MACHINE: return try prices.machine?.bill(nanoseconds: cost.nanoseconds)
  case TAMIS_BILL_ENERGY:
    guard let energy = prices.energy else { return nil }
    return try cost.bill(energy)
  default: throw TamisError(.argument, "kind: \(kind) is no TAMIS_BILL_ value")
  }
}

/// Text with its final zero into a fixed array of chars; cut if it is too long, which no amount is.
func write<Chars>(_ text: String, to array: inout Chars) {
  withUnsafeMutableBytes(of: &array) { bytes in
    var at = 0
    for byte in text.utf8 where at < bytes.count &- 1 {
      bytes[at] = byte
      at &+= 1
    }
    while at < bytes.count {
      bytes[at] = 0
      at &+= 1
    }
  }
}
