// Section 6.1 of the header: text as token ids and back.

public import CTamis
import TamisFormats
import TamisModel
import TamisRuntime

@_cdecl("tamis_model_tokenize") @implementation
public func tamis_model_tokenize(
  _ model: OpaquePointer?, _ text: UnsafePointer<CChar>?, _ bytes: Int,
  _ options: UnsafePointer<tamis_tokenize_options>?, _ tokens: UnsafeMutablePointer<Int32>?, _ capacity: Int,
  _ count: UnsafeMutablePointer<Int>?
) -> tamis_status {
  boundary("tamis_model_tokenize") { () throws(TamisError) in
    let model: TextModel = try object(model, "model")
    let text = try givenText(text, bytes)
    let given = try Tamis.options(options, defaults: tamis_tokenize_options())
    try requireRoom(tokens, capacity, count)
    let wanted = Tokenizer.EncodingOptions(
      addsSpecialTokens: given.bare == 0, treatsSpecialAsText: given.special_as_text != 0)
    var ids = GrowableBuffer<Int32>(model.context)
    try model.requireTokenizer().encode(text, wanted, into: &ids)
    give(ids.elements, tokens, capacity, count)
  }
}

private func requireRoom(
  _ tokens: UnsafeMutablePointer<Int32>?, _ capacity: Int, _ count: UnsafeMutablePointer<Int>?
) throws(TamisError) {
  guard capacity >= 0 else { throw TamisError(.argument, "capacity is too large") }
  guard tokens != nil || capacity == 0 else { throw TamisError(.argument, "tokens is NULL") }
  try requireAligned(tokens, "tokens")
  try requireAligned(try required(count, "count"), "count")
}

/// As many as there is room for, and how many there are.
private func give(
  _ ids: UnsafeBufferPointer<Int32>, _ tokens: UnsafeMutablePointer<Int32>?, _ capacity: Int,
  _ count: UnsafeMutablePointer<Int>?
) {
  count?.pointee = ids.count
  guard let tokens, let first = ids.baseAddress else { return }
  tokens.update(from: first, count: min(ids.count, capacity))
}

@_cdecl("tamis_model_detokenize") @implementation
public func tamis_model_detokenize(
  _ model: OpaquePointer?, _ tokens: UnsafePointer<Int32>?, _ count: Int, _ skip_special: UInt32,
  _ text: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tamis_status {
  boundary("tamis_model_detokenize") { () throws(TamisError) in
    let model: TextModel = try object(model, "model")
    let tokens = try ids(tokens, count)
    guard tokens != nil || count == 0 else { throw TamisError(.argument, "tokens is NULL") }
    var bytes = GrowableBuffer<UInt8>(model.context)
    try model.requireTokenizer().decode(
      UnsafeBufferPointer(start: tokens, count: count), skipsSpecial: skip_special != 0, into: &bytes)
    try copyText(bytes.elements, text, capacity, needed)
  }
}

@_cdecl("tamis_model_chat") @implementation
public func tamis_model_chat(
  _ model: OpaquePointer?, _ messages: UnsafePointer<tamis_message>?, _ count: Int, _ thinking: UInt32,
  _ tokens: UnsafeMutablePointer<Int32>?, _ capacity: Int, _ token_count: UnsafeMutablePointer<Int>?
) -> tamis_status {
  boundary("tamis_model_chat") { () throws(TamisError) in
    let model: TextModel = try object(model, "model")
    try requireChatEncoding(model)
    let turns = try conversation(messages, count, model.context)
    try requireRoom(tokens, capacity, token_count)
    var text = GrowableBuffer<UInt8>(model.context)
    try ChatEncoding.append(turns, thinking: thinking != 0, to: &text)
    var ids = GrowableBuffer<Int32>(model.context)
    try model.requireTokenizer().encode(
      UnsafeRawBufferPointer(text.elements), Tokenizer.EncodingOptions(addsSpecialTokens: false), into: &ids)
    give(ids.elements, tokens, capacity, token_count)
  }
}

@_cdecl("tamis_model_parse") @implementation
public func tamis_model_parse(
  _ model: OpaquePointer?, _ text: UnsafePointer<CChar>?, _ bytes: Int, _ thinking: UInt32,
  _ message: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tamis_status {
  boundary("tamis_model_parse") { () throws(TamisError) in
    let model: TextModel = try object(model, "model")
    try requireChatEncoding(model)
    var json = GrowableBuffer<UInt8>(model.context)
    try ChatReply.append(givenText(text, bytes), thinking: thinking != 0, to: &json)
    try copyText(json.elements, message, capacity, needed)
  }
}

private func requireChatEncoding(_ model: TextModel) throws(TamisError) {
  guard model.decoder.config.family == .deepseekV32 else {
    throw TamisError(.unsupported, "only deepseek_v32 has a chat encoding here")
  }
}

private func givenText(_ text: UnsafePointer<CChar>?, _ bytes: Int) throws(TamisError) -> UnsafeRawBufferPointer {
  guard bytes >= 0, bytes <= Tokenizer.textLimit else {
    throw TamisError(.argument, "bytes is \(UInt(bitPattern: bytes)), expected at most \(Tokenizer.textLimit)")
  }
  guard text != nil || bytes == 0 else { throw TamisError(.argument, "text is NULL") }
  return UnsafeRawBufferPointer(start: text, count: bytes)
}

/// A conversation is far below 2^20 turns, so its list is bookkeeping.
private func conversation(
  _ messages: UnsafePointer<tamis_message>?, _ count: Int, _ context: Context
) throws(TamisError) -> [ChatMessage] {
  guard count >= 1, count <= 1 << 20 else {
    throw TamisError(.argument, "count is \(UInt(bitPattern: count)), expected 1 to 2^20")
  }
  guard let messages, UInt(bitPattern: messages) % UInt(MemoryLayout<tamis_message>.alignment) == 0 else {
    throw TamisError(.argument, "messages is NULL or not aligned")
  }
  var turns: [ChatMessage] = []
  for (number, message) in UnsafeBufferPointer(start: messages, count: count).enumerated() {
    guard let role = ChatMessage.Role(rawValue: message.role) else {
      throw TamisError(.argument, "messages[\(number)]: \(message.role) is no TAMIS_ROLE_ value")
    }
    func part(_ text: UnsafePointer<CChar>?, _ bytes: Int) throws(TamisError) -> UnsafeRawBufferPointer {
      guard bytes >= 0, bytes <= Tokenizer.textLimit, text != nil || bytes == 0 else {
        throw TamisError(.argument, "messages[\(number)]: a text of \(UInt(bitPattern: bytes)) bytes, or NULL")
      }
      return UnsafeRawBufferPointer(start: text, count: bytes)
    }
    func json(_ name: String, _ text: UnsafePointer<CChar>?, _ bytes: Int) throws(TamisError) -> JSONValue? {
      let text = try part(text, bytes)
      return text.isEmpty ? nil : try JSONDocument(copying: text, name: "messages[\(number)].\(name)", context).root
    }
    var turn = ChatMessage(
      role, try part(message.content, message.content_bytes),
      reasoning: try part(message.reasoning, message.reasoning_bytes))
    turn.tools = try json("tools", message.tools, message.tools_bytes)
    turn.calls = try json("tool_calls", message.tool_calls, message.tool_calls_bytes)
    turn.responseFormat = try json("response_format", message.response_format, message.response_format_bytes)
    turns.append(turn)
  }
  return turns
}
