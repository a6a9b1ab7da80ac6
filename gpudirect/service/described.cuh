/* What the compiler knows of a function of the service, from its type. Stands behind signature.h. */
namespace gd_service {

constexpr unsigned gd_in_packet = P2PMOD_PACKET_ARGUMENTS; /* bytes of arguments */

template <bool condition, class T, class F> struct choose { typedef T type; };
template <class T, class F> struct choose<false, T, F> { typedef F type; };

template <unsigned... I> struct indices {};
template <unsigned N, unsigned... I> struct count_to : count_to<N - 1, N - 1, I...> {};
template <unsigned... I> struct count_to<0, I...> { typedef indices<I...> type; };

/* Where argument `which` starts, each at its natural alignment; which == number of them: the end. */
template <class... P> __device__ constexpr unsigned offset_of(unsigned which)
{
    unsigned sizes[] = {sizeof(P)..., 0}, alignments[] = {alignof(P)..., 1}, offset = 0;
    for (unsigned i = 0;; i++) {
        if (i == which && i == sizeof...(P))
            return offset;
        offset = (offset + alignments[i] - 1) / alignments[i] * alignments[i];
        if (i == which)
            return offset;
        offset += sizes[i];
    }
}

/* Does the function look at memory that the CPU writes, or write memory that the CPU looks at? */
template <class T> struct touches {
    static constexpr char kind = char(gd_signature_of::gd_kind_of<T>::gd_value);
    static constexpr bool reads = kind == 's', writes = kind == 's';
};
template <class T> struct touches<T *> { static constexpr bool reads = true, writes = true; };
template <class T> struct touches<const T *> { static constexpr bool reads = true, writes = false; };
template <class T> struct touches<T *const> : touches<T *> {};

template <class F> struct gd_described;
template <class R, class... P> struct gd_described<R (*)(P...)> {
    static constexpr unsigned count = sizeof...(P);
    static constexpr unsigned gd_size = offset_of<P...>(count);
    static constexpr bool reads = (touches<P>::reads || ... || false);
    static constexpr bool gd_writes = (touches<P>::writes || ... || false);
    static constexpr bool gd_plain = ((alignof(P) <= 16) && ... && true);

    typedef typename count_to<count>::type all;

    template <class T> static __device__ inline const T &at(const char *arguments, unsigned offset)
    {
        return *(const T *)(arguments + offset);
    }

    /* The arguments lie one behind the other, aligned to 16 bytes. */
    template <unsigned... I>
    static __device__ inline unsigned long long run(R (*function)(P...), const char *arguments,
                                                    indices<I...>)
    {
        if constexpr (gd_signature_of::gd_kind<R>::gd_value == 'v') {
            function(at<typename gd_signature_of::gd_plain<P>::gd_type>(
                arguments, offset_of<P...>(I))...);
            return 0;
        } else {
            static_assert(sizeof(R) <= 8, "a function of a service returns at most 8 bytes: let it "
                                          "store larger results through a pointer");
            union { unsigned long long bits; R result; } both = {0};
            both.result = function(at<typename gd_signature_of::gd_plain<P>::gd_type>(
                arguments, offset_of<P...>(I))...);
            return both.bits;
        }
    }
};

template <class R, class... P>
struct gd_described<R (*)(P...) noexcept> : gd_described<R (*)(P...)> {};

/* The same as data, which the CPU side finds in the compiled image. */
struct parameter { unsigned kind, size, alignment, pointee_kind, pointee_size; };
template <unsigned n> struct table {
    char magic[8];
    unsigned number, count;
    parameter parameters[n + 1];         /* the result, then the parameters */
};
template <class T> struct entry {
    static constexpr parameter value = {
        gd_signature_of::gd_describe<T>::gd_value.gd_kind,
        gd_signature_of::gd_describe<T>::gd_value.gd_size,
        gd_signature_of::gd_describe<T>::gd_value.gd_alignment,
        gd_signature_of::gd_describe<T>::gd_value.gd_pointee_kind,
        gd_signature_of::gd_describe<T>::gd_value.gd_pointee_size};
};
template <> struct entry<void> { static constexpr parameter value = {'v', 0, 1, 0, 0}; };
template <class F, unsigned number> struct gd_tabled;
template <class R, class... P, unsigned number> struct gd_tabled<R (*)(P...), number> {
    static constexpr table<sizeof...(P)> gd_value = {
        {'g', 'd', '-', 'f', 'u', 'n', '0', '1'}, number, sizeof...(P),
        {entry<R>::value, entry<P>::value...}};
};
template <class R, class... P, unsigned number>
struct gd_tabled<R (*)(P...) noexcept, number> : gd_tabled<R (*)(P...), number> {};

}  // namespace gd_service
