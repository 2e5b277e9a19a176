// One vector as the dot products of a format want it.

int64_t input_bytes(Format format, int64_t columns) {
    if (format == Format::bf16) return padded(4 * columns);
    return format == Format::int8 || format == Format::int4 ? quantised_bytes(columns) : 0;
}

void view_input(Format format, const float *x, int64_t columns, void *memory, Input *input) {
    *input = Input{};
    input->x = format == Format::bf16 ? static_cast<const float *>(memory) : x;
    if (format == Format::int8 || format == Format::int4) view_quantised(columns, memory, input);
}

void fill_input(Format format, const float *x, int64_t columns, void *memory, Input *input) {
    view_input(format, x, columns, memory, input);
    if (format == Format::bf16)
        order_input(x, columns, static_cast<float *>(memory));
    else if (format == Format::int8)
        quantise_input<Format::int8>(x, columns, input);
    else if (format == Format::int4)
        quantise_input<Format::int4>(x, columns, input);
}
