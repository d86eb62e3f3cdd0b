# Completion of uvirtio for bash 4 and later.

_uvirtio() {
    local reply=() kind word prefix value
    COMPREPLY=()
    # The line up to the cursor, and not COMP_WORDS: bash splits words at the colons of addresses.
    mapfile -t reply < <(_UVIRTIO_COMPLETE=line "${1/#\~\//$HOME/}" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    IFS=$'\t' read -r kind word <<<"${reply[0]-}"
    case $kind in
        files) compopt -o default ;;
        dirs) compopt -o dirnames ;;
        words)
            # What bash replaces is only what follows the last colon or equals sign of the word.
            prefix=${word%"$2"}
            for value in "${reply[@]:1}"; do
                value=${value%%$'\t'*}
                COMPREPLY+=("${value#"$prefix"}")
                [[ $value == *[:/=,] ]] && compopt -o nospace
            done
            ;;
    esac
}

complete -F _uvirtio uvirtio
