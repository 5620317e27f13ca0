// Times a model's own steps at a short context: what a machine's profile takes its linear layers from, and all that is
// between the operators. It measures and decides nothing.

import TamisCache
import TamisOperators
package import TamisRuntime

/// One call of evaluate: the fastest of several.
package struct TimedStep: Sendable {
  package let rows: Int
  package let seconds: Double
  /// FLOP of its linear layers.
  package let linearFlops: Double
  /// What linear layers, selection and attention took of the seconds.
  package let linearSeconds: Double
  package let selectionSeconds: Double
  package let attentionSeconds: Double
}

extension Model {
  private static let promptRows = 512
  private static let tokens = 12
  private static let longest = 5.0

  /// A prompt of up to 512 tokens, the faster of two, and the fastest of some tokens behind it. Keys are selected where
  /// the model has an indexer.
  package func timeSteps() throws(TamisError) -> (prompt: TimedStep, token: TimedStep) {
    let cache = try Cache(context, cacheOptions)
    let rows = max(1, min(Model.promptRows, config.maxPositions &- Model.tokens &- 1))
    let count = rows &+ Model.tokens
    let memory = try context.borrowScratch(bytes: Size.product(Size.sum(config.vocabulary, count), 4))
    defer { context.returnScratch(memory) }
    let ids = memory.pointer.assumingMemoryBound(to: Int32.self)
    // Other tokens choose other experts.
    for i in 0..<count { ids[i] = Int32(truncatingIfNeeded: (i &* 7919 &+ 13) % max(config.vocabulary, 1)) }
    let logits = try floatView(
      (memory.pointer + count &* 4).assumingMemoryBound(to: Float.self), rows: 1, columns: config.vocabulary)
    let tokens = UnsafeBufferPointer(start: ids, count: rows)
    var sequence = try TokenSequence.create(cache)
    var prompt = try timed(sequence, tokens, logits)
    if prompt.seconds < Model.longest {
      // The first one read the weights from their file.
      sequence = try TokenSequence.create(cache)
      let second = try timed(sequence, tokens, logits)
      if second.seconds < prompt.seconds { prompt = second }
    }
    var best = try timed(sequence, UnsafeBufferPointer(start: ids + rows, count: 1), logits)
    for i in rows &+ 1..<count where best.seconds < Model.longest {
      let next = try timed(sequence, UnsafeBufferPointer(start: ids + i, count: 1), logits)
      if next.seconds < best.seconds { best = next }
    }
    return (prompt, best)
  }

  private func timed(
    _ sequence: TokenSequence, _ tokens: UnsafeBufferPointer<Int32>, _ logits: Tensor
  ) throws(TamisError) -> TimedStep {
    var options = EvaluateOptions(rows: .last)
    if config.index != nil { options.attention = .sparse }
    let tally = Tally(outer: Recorder.current ?? context.counters.root)
    try tally.recorder.enter()
    let began = now()
    do {
      try evaluate([Request(sequence, tokens)], options, logits: logits)
    } catch {
      try Recorder.leave(identity: tally.identity)
      throw error
    }
    let ended = now()
    try Recorder.leave(identity: tally.identity)
    let sums = tally.sums
    return TimedStep(
      rows: tokens.count, seconds: Double(ended &- began) * 1e-9, linearFlops: Double(sums.linear.flops),
      linearSeconds: seconds(sums.linear), selectionSeconds: seconds(sums.selection),
      attentionSeconds: seconds(sums.attention))
  }

  /// A single thread's own processor time, which other programs on the machine do not add to; else the wall's.
  private func now() -> UInt64 { context.threads == 1 ? Clock.threadCPU() : Clock.wall() }

  private func seconds(_ sample: Sample) -> Double {
    Double(context.threads == 1 ? sample.cpuNanoseconds : sample.wallNanoseconds) * 1e-9
  }
}

/// Adds up what the calls of this thread did, and tells whoever would have been told.
private final class Tally: Sendable {
  struct Sums: Sendable {
    var linear = Sample()
    var selection = Sample()
    var attention = Sample()
  }

  private let guarded = Guarded(Sums())
  private let outer: Recorder?

  init(outer: Recorder?) { self.outer = outer }

  var identity: UInt { UInt(bitPattern: Unmanaged.passUnretained(self).toOpaque()) }
  var sums: Sums { guarded.withLock { $0 } }

  var recorder: Recorder {
    Recorder(identity: identity) { operation, sample in
      self.guarded.withLock { sums in
        switch operation {
        case .project: Tally.add(sample, to: &sums.linear)
        case .select: Tally.add(sample, to: &sums.selection)
        case .attend: Tally.add(sample, to: &sums.attention)
        case .quantize, .dequantize, .index, .topk, .merge, .cache: break
        }
      }
      self.outer?.add(operation, sample)
    }
  }

  private static func add(_ sample: Sample, to sum: inout Sample) {
    sum.flops &+= sample.flops
    sum.wallNanoseconds &+= sample.wallNanoseconds
    sum.cpuNanoseconds &+= sample.cpuNanoseconds
  }
}
