/*
 * A kernel's parameters as data, made by the compiler itself: GD_SIGNATURE(scale<float>) after
 * the source defines gd_signature, which `signature.py` finds in the compiled image and reads.
 * Serves NVRTC and the host's compiler alike, so it includes nothing.
 */
namespace gd_signature_of {

struct parameter {
    unsigned kind, size, alignment, pointee_kind, pointee_size;
};

template <unsigned N> struct table {
    char magic[8];
    unsigned count;
    parameter parameters[N + 1];          /* one more, because there is no array of none */
};

template <class T> struct plain { typedef T type; };
template <class T> struct plain<const T> { typedef T type; };
template <class T> struct plain<volatile T> { typedef T type; };
template <class T> struct plain<const volatile T> { typedef T type; };

template <class T, bool = __is_enum(T)> struct number { typedef T type; };
template <class T> struct number<T, true> { typedef __underlying_type(T) type; };

template <class T> struct kind { static constexpr unsigned value = 's'; };
template <> struct kind<void> { static constexpr unsigned value = 'v'; };
template <> struct kind<bool> { static constexpr unsigned value = 'b'; };
template <> struct kind<float> { static constexpr unsigned value = 'f'; };
template <> struct kind<double> { static constexpr unsigned value = 'f'; };
template <> struct kind<char> { static constexpr unsigned value = char(-1) < 0 ? 'i' : 'u'; };
template <> struct kind<wchar_t> { static constexpr unsigned value = 'i'; };
template <> struct kind<signed char> { static constexpr unsigned value = 'i'; };
template <> struct kind<short> { static constexpr unsigned value = 'i'; };
template <> struct kind<int> { static constexpr unsigned value = 'i'; };
template <> struct kind<long> { static constexpr unsigned value = 'i'; };
template <> struct kind<long long> { static constexpr unsigned value = 'i'; };
template <> struct kind<unsigned char> { static constexpr unsigned value = 'u'; };
template <> struct kind<char16_t> { static constexpr unsigned value = 'u'; };
template <> struct kind<char32_t> { static constexpr unsigned value = 'u'; };
template <> struct kind<unsigned short> { static constexpr unsigned value = 'u'; };
template <> struct kind<unsigned int> { static constexpr unsigned value = 'u'; };
template <> struct kind<unsigned long> { static constexpr unsigned value = 'u'; };
template <> struct kind<unsigned long long> { static constexpr unsigned value = 'u'; };
template <class T> struct kind<T *> { static constexpr unsigned value = 'p'; };

template <class T> struct size { static constexpr unsigned value = sizeof(T); };
template <> struct size<void> { static constexpr unsigned value = 0; };
template <class R, class... P> struct size<R(P...)> { static constexpr unsigned value = 0; };

template <class T> struct kind_of : kind<typename number<typename plain<T>::type>::type> {};

template <class T> struct describe {
    static constexpr parameter value = {kind_of<T>::value, sizeof(T), alignof(T), 0, 0};
};
template <class T> struct describe<T *> {
    static constexpr parameter value = {'p', sizeof(T *), alignof(T *), kind_of<T>::value,
                                        size<T>::value};
};

/* Deduction picks the kernel where the name is also that of a function with a result. */
template <class... P> struct kernel {
    static constexpr table<sizeof...(P)> signature = {
        {'g', 'd', '-', 's', 'i', 'g', '0', '1'}, sizeof...(P), {describe<P>::value..., {}}};
};
template <class... P> __device__ kernel<P...> type(void (*)(P...));

}  // namespace gd_signature_of

#define GD_SIGNATURE(...)                                                                         \
    extern "C" __device__ const auto gd_signature =                                               \
        decltype(gd_signature_of::type(&__VA_ARGS__))::signature;
