from opd.interrupts import end_quietly_as_command

end_quietly_as_command()
