"""What people run that starts several processes: the demo, the closed loop, generating datasets; and the studio."""
