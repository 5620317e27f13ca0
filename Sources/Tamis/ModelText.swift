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
    guard bytes >= 0, bytes <= Tokenizer.textLimit else {
      throw TamisError(.argument, "bytes is \(UInt(bitPattern: bytes)), expected at most \(Tokenizer.textLimit)")
    }
    guard text != nil || bytes == 0 else { throw TamisError(.argument, "text is NULL") }
    let given = try Tamis.options(options, defaults: tamis_tokenize_options())
    guard capacity >= 0 else { throw TamisError(.argument, "capacity is too large") }
    guard tokens != nil || capacity == 0 else { throw TamisError(.argument, "tokens is NULL") }
    try requireAligned(tokens, "tokens")
    let count = try required(count, "count")
    try requireAligned(count, "count")
    let wanted = Tokenizer.EncodingOptions(
      addsSpecialTokens: given.bare == 0, treatsSpecialAsText: given.special_as_text != 0)
    var ids = GrowableBuffer<Int32>(model.context)
    try model.requireTokenizer().encode(UnsafeRawBufferPointer(start: text, count: bytes), wanted, into: &ids)
    count.pointee = ids.count
    guard let tokens, let first = ids.elements.baseAddress else { return }
    tokens.update(from: first, count: min(ids.count, capacity))
  }
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
