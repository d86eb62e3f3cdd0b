# Completion of uvirtio for fish 3 and later.

function __uvirtio_complete
    set -l words (commandline -opc)
    set -l program $words[1]
    set -e words[1]
    set -l current (commandline -ct | string replace --regex '^["\']' '')
    set -l reply (env _UVIRTIO_COMPLETE=words $program $words "$current" 2>/dev/null)
    set -l head (string split \t -- $reply[1])
    set -e reply[1]
    switch "$head[1]"
        case files
            __fish_complete_path "$current"
        case dirs
            __fish_complete_directories "$current"
        case words
            printf '%s\n' $reply
    end
end

complete -c uvirtio -f -a '(__uvirtio_complete)'
