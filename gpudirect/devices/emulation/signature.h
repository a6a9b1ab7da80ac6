/*
 * A kernel's parameters as data, made by the compiler itself: GD_SIGNATURE(scale<float>) after
 * the source defines gd_signature, which `signature.py` finds in the compiled image and reads.
 * It stands before the source. Every name begins with gd, as the source, behind which the macro
 * is used, may have made a macro of any other, and so may the compiler's options.
 * Serves NVRTC and the host's compiler alike, so it includes nothing.
 */
#ifndef GPUDIRECT_SIGNATURE_H
#define GPUDIRECT_SIGNATURE_H
namespace gd_signature_of {

struct gd_parameter {
    unsigned gd_kind, gd_size, gd_alignment, gd_pointee_kind, gd_pointee_size;
};

template <unsigned gd_n> struct gd_table {
    char gd_magic[8];
    unsigned gd_count;
    gd_parameter gd_parameters[gd_n + 1];          /* one more, because there is no array of none */
};

template <class GdT> struct gd_plain { typedef GdT gd_type; };
template <class GdT> struct gd_plain<const GdT> { typedef GdT gd_type; };
template <class GdT> struct gd_plain<volatile GdT> { typedef GdT gd_type; };
template <class GdT> struct gd_plain<const volatile GdT> { typedef GdT gd_type; };

template <class GdT, bool = __is_enum(GdT)> struct gd_number { typedef GdT gd_type; };
template <class GdT> struct gd_number<GdT, true> { typedef __underlying_type(GdT) gd_type; };

template <class GdT> struct gd_kind { static constexpr unsigned gd_value = 's'; };
template <> struct gd_kind<void> { static constexpr unsigned gd_value = 'v'; };
template <> struct gd_kind<bool> { static constexpr unsigned gd_value = 'b'; };
template <> struct gd_kind<float> { static constexpr unsigned gd_value = 'f'; };
template <> struct gd_kind<double> { static constexpr unsigned gd_value = 'f'; };
template <> struct gd_kind<char> { static constexpr unsigned gd_value = char(-1) < 0 ? 'i' : 'u'; };
template <> struct gd_kind<wchar_t> { static constexpr unsigned gd_value = 'i'; };
template <> struct gd_kind<signed char> { static constexpr unsigned gd_value = 'i'; };
template <> struct gd_kind<short> { static constexpr unsigned gd_value = 'i'; };
template <> struct gd_kind<int> { static constexpr unsigned gd_value = 'i'; };
template <> struct gd_kind<long> { static constexpr unsigned gd_value = 'i'; };
template <> struct gd_kind<long long> { static constexpr unsigned gd_value = 'i'; };
template <> struct gd_kind<unsigned char> { static constexpr unsigned gd_value = 'u'; };
template <> struct gd_kind<char16_t> { static constexpr unsigned gd_value = 'u'; };
template <> struct gd_kind<char32_t> { static constexpr unsigned gd_value = 'u'; };
template <> struct gd_kind<unsigned short> { static constexpr unsigned gd_value = 'u'; };
template <> struct gd_kind<unsigned int> { static constexpr unsigned gd_value = 'u'; };
template <> struct gd_kind<unsigned long> { static constexpr unsigned gd_value = 'u'; };
template <> struct gd_kind<unsigned long long> { static constexpr unsigned gd_value = 'u'; };
template <class GdT> struct gd_kind<GdT *> { static constexpr unsigned gd_value = 'p'; };

/* 0 of what has no size: void, functions, types that are only declared. */
template <decltype(sizeof(0))> struct gd_sized { typedef void gd_type; };
template <class GdT, class = void> struct gd_size_of { static constexpr unsigned gd_value = 0; };
template <class GdT> struct gd_size_of<GdT, typename gd_sized<sizeof(GdT)>::gd_type> {
    static constexpr unsigned gd_value = sizeof(GdT);
};
template <class GdT> struct gd_size : gd_size_of<typename gd_plain<GdT>::gd_type> {};
template <> struct gd_size<void> { static constexpr unsigned gd_value = 0; };
template <> struct gd_size<const void> { static constexpr unsigned gd_value = 0; };
template <> struct gd_size<volatile void> { static constexpr unsigned gd_value = 0; };
template <> struct gd_size<const volatile void> { static constexpr unsigned gd_value = 0; };

template <class GdT> struct gd_kind_of : gd_kind<typename gd_number<typename gd_plain<GdT>::gd_type>::gd_type> {};

template <class GdT> struct gd_describe {
    static constexpr gd_parameter gd_value = {gd_kind_of<GdT>::gd_value, sizeof(GdT), alignof(GdT), 0, 0};
};
template <class GdT> struct gd_describe<GdT *> {
    static constexpr gd_parameter gd_value = {'p', sizeof(GdT *), alignof(GdT *), gd_kind_of<GdT>::gd_value,
                                        gd_size<GdT>::gd_value};
};

/* Deduction picks the kernel where the name is also that of a function with a result. */
template <class... GdP> struct gd_kernel {
    typedef void (*gd_pointer)(GdP...);
    static constexpr gd_table<sizeof...(GdP)> gd_signature = {
        {'g', 'd', '-', 's', 'i', 'g', '0', '1'}, sizeof...(GdP), {gd_describe<GdP>::gd_value..., {}}};
};
template <class... GdP> __device__ gd_kernel<GdP...> gd_type(void (*)(GdP...));

}  // namespace gd_signature_of

/* And gd_kernel_pointer is its pointer's type: the name alone may not say which function is meant. */
#define GD_SIGNATURE(...)                                                                         \
    typedef decltype(gd_signature_of::gd_type(&__VA_ARGS__))::gd_pointer gd_kernel_pointer;       \
    extern "C" __device__ const auto gd_signature =                                               \
        decltype(gd_signature_of::gd_type(&__VA_ARGS__))::gd_signature;
#endif
