// A text made token by token: the prompt is evaluated once, then each call chooses a token and says which text is
// certain now. It owns when to stop (end tokens, stop texts, the limit, the model's last position) and that only whole
// characters and nothing of a stop text are handed out. It refuses stop texts that are not UTF-8, and a sequence that
// somebody else has changed meanwhile. A call that fails changes nothing: it may be made again.

package import TamisCache
import TamisFormats
package import TamisRuntime

package struct GenerateOptions {
  /// 0: as many as the model has positions for.
  package var maxTokens: UInt64 = 0
  package var sampler = SamplerOptions()
  package var evaluate = EvaluateOptions()
  package var trace: AttentionTrace?
  /// Beside the model's own, which `ignoresEnd` switches off.
  package var stopTokens: [Int32] = []
  package var ignoresEnd = false
  package var stopTexts: StopTexts?

  package init() {}
}

package enum StopReason: Int32, Sendable {
  case none = 0
  case endToken, stopText, maxTokens, full, caller
}

package struct GenerationCounts: Sendable {
  package var promptTokens: UInt64 = 0
  package var tokens: UInt64 = 0
  package var prefillNanoseconds: UInt64 = 0
  package var decodeNanoseconds: UInt64 = 0
}

package struct GenerationStep {
  /// nil: there was no position left.
  package let token: Int32?
  /// What is certain now, with a zero behind it; valid until the next call.
  package let text: UnsafeBufferPointer<UInt8>
  /// Why this was the last one.
  package let stop: StopReason
  /// Of the generation so far.
  package let counts: GenerationCounts
}

package final class Generation: @unchecked Sendable {
  private let model: TextModel
  private let sequence: TokenSequence
  private let options: GenerateOptions
  private let tokenizer: Tokenizer?
  private let logits: UnsafeMutablePointer<Float>  // [vocabulary]
  private let busy = BusyFlag()
  /// Of the sequence, as far as it was evaluated here.
  private var length = 0
  /// Chosen, and not yet evaluated.
  private var last: Int32?
  /// Chosen in a call that failed afterwards.
  private var chosen: Int32?
  private var text: StoppableText
  private var counts = GenerationCounts()
  private var stop = StopReason.none

  /// Evaluates the prompt: at least one token, behind what the sequence holds.
  package init(
    _ model: TextModel, _ sequence: TokenSequence, prompt: UnsafeBufferPointer<Int32>, _ options: GenerateOptions
  ) throws(TamisError) {
    self.model = model
    self.sequence = sequence
    self.options = options
    tokenizer = options.stopTexts == nil && model.tokenCount == 0 ? nil : try model.requireTokenizer()
    guard options.evaluate.rows == .last else { throw TamisError(.argument, "options: all_logits in a generation") }
    try options.sampler.check()
    text = StoppableText(model.context)
    logits = try model.context.allocate(bytes: model.decoder.config.vocabulary &* 4, what: "logits")
      .bindMemory(to: Float.self, capacity: model.decoder.config.vocabulary)
    counts.prefillNanoseconds = try evaluate(prompt)
    counts.promptTokens = UInt64(prompt.count)
  }

  deinit { model.context.release(logits, bytes: model.decoder.config.vocabulary &* 4) }

  /// The next token. A call after the last one is refused.
  package func next() throws(TamisError) -> GenerationStep {
    try busy.enter("generation")
    defer { busy.leave() }
    guard stop == .none else { throw TamisError(.argument, "the generation has ended") }
    if chosen == nil, last != nil, length >= model.decoder.config.maxPositions {
      _ = try text.add(UnsafeBufferPointer(start: nil, count: 0), isLast: true, stops: nil)
      stop = .full
      return GenerationStep(token: nil, text: text.certain, stop: stop, counts: counts)
    }
    let token = try choose()
    stop = try deliver(token)
    chosen = nil
    last = token
    return GenerationStep(token: token, text: text.certain, stop: stop, counts: counts)
  }

  // MARK: Steps

  private func choose() throws(TamisError) -> Int32 {
    if let chosen { return chosen }
    if let last {
      counts.decodeNanoseconds &+= try withUnsafePointer(to: last) { token throws(TamisError) in
        try evaluate(UnsafeBufferPointer(start: token, count: 1))
      }
      self.last = nil
    }
    let begin = Clock.wall()
    let row = UnsafeBufferPointer(start: UnsafePointer(logits), count: model.decoder.config.vocabulary)
    let token = try Sampler.next(model.context, row, options.sampler, draws: counts.tokens)
    counts.decodeNanoseconds &+= Clock.wall() &- begin
    chosen = token
    return token
  }

  /// Returns nanoseconds.
  private func evaluate(_ tokens: UnsafeBufferPointer<Int32>) throws(TamisError) -> UInt64 {
    let begin = Clock.wall()
    let now = try sequence.length()
    if counts.promptTokens > 0, now != length {
      throw TamisError(.argument, "the sequence has \(now) tokens, but \(length) when it was last used here")
    }
    try model.decoder.evaluate(
      [Request(sequence, tokens, trace: options.trace)], options.evaluate,
      logits: floatView(logits, rows: 1, columns: model.decoder.config.vocabulary))
    length = now &+ tokens.count
    return Clock.wall() &- begin
  }

  /// Adds the token's text; counts it when nothing can fail any more.
  private func deliver(_ token: Int32) throws(TamisError) -> StopReason {
    let isEnd = options.stopTokens.contains(token) || (!options.ignoresEnd && model.endTokens.contains(token))
    let isLast = options.maxTokens > 0 && counts.tokens &+ 1 >= options.maxTokens
    var bytes = GrowableBuffer<UInt8>(model.context)
    if let tokenizer, !isEnd, !tokenizer.isSpecial(token) { try append(token, tokenizer, to: &bytes) }
    let isStopped = try text.add(bytes.elements, isLast: isEnd || isLast, stops: options.stopTexts)
    counts.tokens &+= 1
    return isEnd ? .endToken : isStopped ? .stopText : isLast ? .maxTokens : .none
  }

  /// An id that the tokenizer does not know (a padded vocabulary has some) has no text.
  private func append(
    _ token: Int32, _ tokenizer: Tokenizer, to bytes: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    do {
      try tokenizer.appendBytes(of: token, to: &bytes)
    } catch {
      guard error.status == .argument else { throw error }
    }
  }
}
