"""What is served and how: schedules, work pools and limits as data, and the processes that serve them."""
