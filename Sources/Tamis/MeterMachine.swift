// Section 7.1 of the header: machines.

public import CTamis
import TamisFormats
import TamisMeter
import TamisModel
import TamisOperators
import TamisRuntime

@_cdecl("tamis_machine_measure") @implementation
public func tamis_machine_measure(
  _ ctx: OpaquePointer?, _ options: UnsafePointer<tamis_machine_options>?,
  _ machine: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_machine_measure") { () throws(TamisError) in
    let context: Context = try object(ctx, "ctx")
    let machine = try required(machine, "machine")
    let given = try Tamis.options(options, defaults: tamis_machine_options())
    let model = try architecture(given.architecture)
    let currency = try Currency(text(given.currency, "currency") ?? "USD")
    let name = try text(given.name, "name") ?? processorName()
    let date = try text(given.date, "date") ?? ""
    let price = try text(given.price_per_hour, "price_per_hour").map { amount throws(TamisError) in
      try MachinePrice(name: name, perHour: Money(Decimal(parsing: amount), currency)).perHour
    }
    let timed: TextModel? = try given.model == nil ? nil : object(given.model, "model")
    guard timed == nil || timed?.context === context else {
      throw TamisError(.argument, "options: model is of another context than ctx")
    }
    let profile = try measure(context, model, timed?.decoder).profile(name: name, date: date, pricePerHour: price)
    machine.pointee = handle(Box(profile))
  }
}

/// The peaks, then each operator at a few sizes, one query row and many.
private func measure(
  _ context: Context, _ model: Architecture, _ timed: Model?
) throws(TamisError) -> Calibration {
  let limits = try Limits.measure(context, threads: context.threads)
  let peaks = MachineProfile.Peaks(
    eightBit: 2 * limits.int8, sixteenBit: 2 * limits.bf16, float32: 2 * limits.f32)
  var found = Calibration(peaks: peaks, memory: limits.memory)
  found.decode = try phase(context, model, rows: 1, keys: [512, 4096, 32_768])
  found.prefill = try phase(context, model, rows: 64, keys: [256, 1024, 8192])
  guard let timed else { return found }
  let steps = try timed.timeSteps()
  found.prefill.steps = calibrationSteps(steps.prompt, timed.config, model)
  found.decode.steps = calibrationSteps(steps.token, timed.config, model)
  found.model = "a \(timed.config.family.name)"
  return found
}

private func calibrationSteps(_ step: TimedStep, _ config: ModelConfig, _ model: Architecture) -> Calibration.Steps {
  var steps = Calibration.Steps()
  steps.rows = step.rows
  steps.layers = config.layers
  steps.matrices = model.matrices
  steps.flops = step.linearFlops
  // As a prediction counts them; what is read and written beside the weights is little.
  steps.bytes = model.weightBytes + model.indexProjectionBytes
  steps.seconds = step.linearSeconds
  steps.others = step.seconds - step.linearSeconds - step.selectionSeconds - step.attentionSeconds
  return steps
}

private func phase(
  _ context: Context, _ model: Architecture, rows: Int, keys: [Int]
) throws(TamisError) -> Calibration.Phase {
  let shape = Trial.Shape(
    heads: model.heads, keyDim: model.absorbed.key, valueDim: model.absorbed.value, indexHeads: model.indexer.heads,
    indexDim: model.indexer.dim, topK: model.indexer.topK)
  let trial = try Trial(context, shape, rows: rows)
  let most = trial.mostKeys
  let topK = min(shape.topK, most)
  let pair = 2 * Double(shape.heads) * Double(shape.keyDim + shape.valueDim)
  let row = 2 * Double(shape.keyDim)
  var phase = Calibration.Phase()
  for factor in [2, 8, 32] where topK * factor <= most {
    let timing = try trial.select(keys: topK * factor)
    let each = 2 * Double(shape.indexHeads) * Double(shape.indexDim)
    phase.index.append(run(timing, rows, flops: each, bytes: Double(shape.indexDim), pairs: topK * factor))
    if timing.seconds > 0.25 { break }
  }
  for count in keys where count <= most {
    let timing = try trial.dense(keys: count)
    phase.dense.append(run(timing, rows, flops: pair, bytes: row, pairs: count))
    if timing.seconds > 0.25 { break }
  }
  // Rows of a prefill find some of each other's keys in the caches, a token alone finds none.
  for chosen in [max(topK / 4, 1), topK] {
    let timing = try trial.sparse(chosen: chosen, keys: min(most, rows == 1 ? 65_536 : 16_384))
    phase.sparse.append(run(timing, rows, flops: pair, bytes: 0, pairs: chosen))
    if timing.seconds > 0.5 { break }
  }
  for outputs in [64, 512] {
    let timing = try trial.linear(inputs: 1024, outputs: outputs)
    phase.linear.append(run(timing, rows, flops: 2 * 1024, bytes: 0, pairs: outputs))
  }
  if rows == 1 {
    for outputs in [128, 512, 2048, 8192] {
      let timing = try trial.cold(inputs: 1024, outputs: outputs)
      phase.weights.append(
        Calibration.Run(
          flops: 2 * 1024 * Double(outputs), bytes: 0, seconds: timing.seconds, spread: timing.spread))
    }
  } else {
    try expand(trial, model, to: &phase.expanded)
  }
  return phase
}

/// Attention in the expanded form where the architecture has one: FLOP of the pairs and of making keys and values.
private func expand(
  _ trial: Trial, _ model: Architecture, to runs: inout [Calibration.Run]
) throws(TamisError) {
  let (rows, layers) = (256, Double(model.layers))
  guard model.expansionFlops > 0 else { return }
  let rope = model.absorbed.key &- model.absorbed.value
  let shape = ExpandedShape(
    heads: model.heads, latent: model.absorbed.value, nope: model.expanded.key &- rope, rope: rope,
    value: model.expanded.value, scale: 0.01)
  for keys in [512, 1024, 4096] where try trial.holds(shape, keys: keys) {
    let timing = try trial.expanded(shape, rows: rows, keys: keys)
    let pairs = Double(keys) - Double(rows &- 1) / 2
    let flops =
      pairs * model.expandedFlopsPerPair / layers + Double(keys) * model.expansionFlops / layers / Double(rows)
    runs.append(
      Calibration.Run(flops: flops, bytes: 0, seconds: timing.seconds / Double(rows), spread: timing.spread))
    if timing.seconds > 0.5 { break }
  }
}

/// A timing of `rows` query rows that compared `pairs` keys each, for one row.
private func run(_ timing: Trial.Timing, _ rows: Int, flops: Double, bytes: Double, pairs: Int) -> Calibration.Run {
  Calibration.Run(
    flops: flops * Double(pairs), bytes: bytes * Double(pairs) / Double(rows), seconds: timing.seconds / Double(rows),
    spread: timing.spread)
}

@_cdecl("tamis_machine_published") @implementation
public func tamis_machine_published(
  _ name: UnsafePointer<CChar>?, _ machine: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_machine_published") { () throws(TamisError) in
    let machine = try required(machine, "machine")
    guard let name = try text(name, "name") else { throw TamisError(.argument, "name is NULL") }
    guard name == "H800" else {
      throw TamisError(.argument, "name: no published machine of that name, expected H800")
    }
    machine.pointee = handle(Box(try MachineProfile.h800()))
  }
}

@_cdecl("tamis_machine_parse") @implementation
public func tamis_machine_parse(
  _ text: UnsafePointer<CChar>?, _ bytes: Int, _ machine: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_machine_parse") { () throws(TamisError) in
    let machine = try required(machine, "machine")
    machine.pointee = handle(Box(try MachineProfile(document(text, bytes, "text"))))
  }
}

/// JSON of the caller.
func document(
  _ text: UnsafePointer<CChar>?, _ bytes: Int, _ name: StaticString
) throws(TamisError) -> JSONDocument {
  guard let text else { throw TamisError(.argument, "\(name) is NULL") }
  guard bytes >= 0, bytes <= JSONDocument.sizeLimit else {
    throw TamisError(.argument, "\(name): \(UInt(bitPattern: bytes)) bytes, at most \(JSONDocument.sizeLimit)")
  }
  return try JSONDocument(copying: UnsafeRawBufferPointer(start: text, count: bytes), name: "\(name)")
}

@_cdecl("tamis_machine_text") @implementation
public func tamis_machine_text(
  _ machine: OpaquePointer?, _ text: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tamis_status {
  boundary("tamis_machine_text") { () throws(TamisError) in
    var out = BoundedText()
    try profile(machine).write(to: &out)
    try copyText(out.text.utf8, text, capacity, needed)
  }
}

/// The profile behind a handle.
func profile(_ machine: OpaquePointer?) throws(TamisError) -> MachineProfile {
  let box: Box<MachineProfile> = try object(machine, "machine")
  return box.value
}

@_cdecl("tamis_machine_free") @implementation
public func tamis_machine_free(_ machine: OpaquePointer?) { drop(machine, Box<MachineProfile>.self) }
