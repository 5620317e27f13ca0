// Reads the price file of litellm (`model_prices_and_context_window.json`) as it is: an object of models, prices in
// USD for one token. Every number is taken from its text, so 2.8e-07 is exact. Only text tokens at standard rates are
// read; batch, priority, off-peak, image and audio prices are left alone. Refused: a model that is missing or has no
// input or output price, and any price that is negative or absurd.

package import TamisFormats
package import TamisRuntime

extension PriceList {
  /// The entry `model` of the file. The file carries no date; `date` is the day it was fetched.
  package init(litellm file: JSONDocument, model: String, date: String) throws(TamisError) {
    let entry = try PriceList.entry(model, in: file)
    self = try LitellmEntry(entry).list(name: model, date: date)
  }

  private static func entry(_ model: String, in file: JSONDocument) throws(TamisError) -> JSONValue {
    guard file.root.isObject else { throw file.root.failure("an object of models") }
    for (key, value) in file.root.members where try key.string() == model {
      guard value.isObject else { throw value.failure("an object of prices") }
      return value
    }
    throw TamisError(.argument, "prices: no model of that name in the price file")
  }
}

private struct LitellmEntry {
  private static let inputKey = "input_cost_per_token"
  private static let cachedKey = "cache_read_input_token_cost"
  private static let writeKey = "cache_creation_input_token_cost"
  private static let outputKey = "output_cost_per_token"
  private static let prices = [inputKey, cachedKey, writeKey, outputKey]

  private let entry: JSONValue
  /// Prices by key and by the number of input tokens above which they hold.
  private var found: [UInt64: [String: Decimal]] = [0: [:]]

  init(_ entry: JSONValue) throws(TamisError) {
    self.entry = entry
    for (key, value) in entry.members {
      try take(try key.string(), value)
    }
  }

  private mutating func take(_ key: String, _ value: JSONValue) throws(TamisError) {
    if key == "tiered_pricing" {
      try takeTable(value)
      return
    }
    for price in LitellmEntry.prices {
      if key == price {
        found[0]?[price] = try LitellmEntry.decimal(value)
      } else if key.hasPrefix(price + "_above_"),
        let above = LitellmEntry.threshold(key.dropFirst(price.utf8.count + 7))
      {
        try room()
        found[above, default: [:]][price] = try LitellmEntry.decimal(value)
      }
    }
  }

  /// `[{"range": [from, to], "input_cost_per_token": …}, …]`: a tier of this form does not inherit a cached price.
  private mutating func takeTable(_ table: JSONValue) throws(TamisError) {
    for tier in table.elements {
      guard let range = tier.member("range"), let first = range.elements.first(where: { _ in true }) else {
        throw tier.failure("a tier with a \"range\"")
      }
      let above = try LitellmEntry.count(try LitellmEntry.decimal(first), first)
      var prices: [String: Decimal] = [:]
      for (key, value) in tier.members {
        let name = try key.string()
        if LitellmEntry.prices.contains(name) { prices[name] = try LitellmEntry.decimal(value) }
      }
      if let input = prices[LitellmEntry.inputKey] {
        prices[LitellmEntry.cachedKey] = prices[LitellmEntry.cachedKey] ?? input
        prices[LitellmEntry.writeKey] = prices[LitellmEntry.writeKey] ?? input
      }
      try room()
      found[above, default: [:]].merge(prices) { _, new in new }
    }
  }

  func list(name: String, date: String) throws(TamisError) -> PriceList {
    var known: [String: Decimal] = [:]
    var tiers: [PriceList.Tier] = []
    for above in found.keys.sorted() {
      known.merge(found[above] ?? [:]) { _, new in new }
      guard let input = known[LitellmEntry.inputKey], let output = known[LitellmEntry.outputKey] else {
        throw entry.failure("a model with an input and an output price per token")
      }
      let rates = try TokenRates(
        input: input, cached: known[LitellmEntry.cachedKey], cacheWrite: known[LitellmEntry.writeKey], output: output)
      tiers.append(PriceList.Tier(above: above, rates: rates))
    }
    let source = try entry.member("source")?.string() ?? "litellm"
    return try PriceList(name: name, currency: .usd, source: source, date: date, tiers: tiers)
  }

  private func room() throws(TamisError) {
    guard found.count < 64 else { throw entry.failure("at most 64 price tiers") }
  }

  private static func decimal(_ value: JSONValue) throws(TamisError) -> Decimal {
    try Decimal(parsing: value.numberText())
  }

  private static func count(_ value: Decimal, _ at: JSONValue) throws(TamisError) -> UInt64 {
    guard value.places == 0, let count = UInt64(exactly: value.coefficient) else {
      throw at.failure("a number of tokens")
    }
    return count
  }

  /// "128k_tokens" or "200000_tokens"; nil for what is priced otherwise ("1hr", "128k_tokens_batches").
  private static func threshold(_ text: Substring) -> UInt64? {
    guard text.hasSuffix("_tokens") else { return nil }
    var digits = text.dropLast(7)
    let thousands = digits.hasSuffix("k")
    if thousands { digits = digits.dropLast() }
    guard let value = UInt64(digits) else { return nil }
    let (count, overflowed) = value.multipliedReportingOverflow(by: thousands ? 1000 : 1)
    return overflowed ? nil : count
  }
}
